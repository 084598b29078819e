"""Environment variables of ranks on GPUs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def of_ranks(given: Mapping[str, str]) -> dict[str, str]:
    """Return what ranks on GPUs need from the start, in addition to the user's environment `given`.

    What the user has set stays.
    """
    own = {name: value for name, value in _compiled(given).items() if name not in given}
    return {**own, **UNSTARTED}


UNSTARTED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""torch must not start CUDA just to check whether there is a GPU: in the fork server that would fix
the visible devices, and break CUDA in the forks. Where GPUs are hidden it would leave a thread."""


def _compiled(given: Mapping[str, str]) -> dict[str, str]:
    """Return where kernels are kept that are compiled at run time, so that later runs find them.

    torch's default is in the temporary folder, and the group's is removed with it. The first
    compilation would also set TRITON_CACHE_DIR, on the rank that does it alone.
    """
    home = Path(given.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pytest-pprank")
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        "TRITON_CACHE_DIR": str(home / "triton"),
    }
