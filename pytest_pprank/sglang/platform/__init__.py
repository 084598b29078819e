"""SGLang platforms for devices ``cpu`` and ``sim``: plain torch code, no GPU.

They use SGLang's extension point (entry point group ``sglang.srt.platforms``, selected by
SGLANG_PLATFORM). Without a platform, SGLang's rotary embeddings look for vLLM's kernels on a CPU.
This module imports no SGLang. SGLang imports `pytest_pprank.sglang.platform.cpu` (or `.sim`) by
name when, and only when, that platform is selected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path

GROUP = "sglang.srt.platforms"
NAMES = {"cpu": "pprank_cpu", "sim": "pprank_sim"}
_ENTRIES = {"pprank_cpu": "activate", "pprank_sim": "activate_sim"}


def activate() -> str | None:
    """Return the platform class for SGLang to import; None unless it was selected by name.

    SGLang asks every installed platform when SGLANG_PLATFORM is unset. Returning None leaves an
    ordinary SGLang server unchanged on a machine that has pytest-pprank installed.
    """
    chosen = os.environ.get("SGLANG_PLATFORM") == NAMES["cpu"]
    return "pytest_pprank.sglang.platform.cpu:PprankCpuPlatform" if chosen else None


def activate_sim() -> str | None:
    """Return the platform class of the simulated device, as `activate`, and register the device
    with torch.
    """
    if os.environ.get("SGLANG_PLATFORM") != NAMES["sim"]:
        return None
    from pytest_pprank.devices.sim.module import install

    install()
    # The overlap scheduler writes into buffers that the running forward still reads, behind a
    # fence that SGLang enables by default on CUDA only (Scheduler._apply_war_barrier)
    os.environ.setdefault("SGLANG_ENABLE_WAR_BARRIER", "1")
    return "pytest_pprank.sglang.platform.sim:PprankSimPlatform"


def select_platform(device: str) -> None:
    """Make SGLang select the platform of `device` ("cpu" or "sim") in this process.

    Call before importing SGLang. If the plugin runs from a checkout that is not installed, there
    is no entry point to find: then this adds one in memory, by a finder of importlib.metadata.
    """
    name = os.environ["SGLANG_PLATFORM"] = NAMES[device]
    if not any(entry.name == name for entry in metadata.entry_points(group=GROUP)):
        sys.meta_path.append(_CheckoutFinder(name))


class _CheckoutDistribution(Distribution):
    """A distribution that consists of one entry point."""

    def __init__(self, name: str) -> None:
        self._entry = f"[{GROUP}]\n{name} = {__name__}:{_ENTRIES[name]}\n"

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            return "Metadata-Version: 2.1\nName: pytest-pprank-checkout\nVersion: 0\n"
        return self._entry if filename == "entry_points.txt" else None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return Path(path)


class _CheckoutFinder(DistributionFinder):
    """Finds `_CheckoutDistribution`, and no modules."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(
        self, context: DistributionFinder.Context | None = None
    ) -> Iterable[Distribution]:
        name = getattr(context, "name", None)
        return (
            [_CheckoutDistribution(self._name)] if name in (None, "pytest-pprank-checkout") else []
        )
