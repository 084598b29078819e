"""The out-of-tree SGLang platform of device ``cpu``: SGLang's native torch paths, no GPU.

SGLang's own extension point (entry point group ``sglang.srt.platforms``, selected by
SGLANG_PLATFORM); without a platform, rotary embeddings look for vLLM's kernels on a CPU.
This module imports no SGLang: SGLang imports `pytest_pprank.sglang.platform_cpu` by name
when, and only when, the platform is selected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path

GROUP = "sglang.srt.platforms"
NAME = "pprank_cpu"
_ENTRY = f"[{GROUP}]\n{NAME} = {__name__}:activate\n"
_CLASS = "pytest_pprank.sglang.platform_cpu:PprankCpuPlatform"


def activate() -> str | None:
    """Tell SGLang the platform class; None (stand aside) unless it was selected by name.

    SGLang asks every installed platform when SGLANG_PLATFORM is unset: a server on the
    machine of somebody who has pytest-pprank installed must not change.
    """
    return _CLASS if os.environ.get("SGLANG_PLATFORM") == NAME else None


def select_cpu_platform() -> None:
    """Make SGLang resolve to the CPU platform in this process; call before importing SGLang.

    Where the plugin runs from a checkout that is not installed there is no entry point to
    find, so this adds it in memory through importlib.metadata's own finder protocol.
    """
    os.environ["SGLANG_PLATFORM"] = NAME
    if not any(entry.name == NAME for entry in metadata.entry_points(group=GROUP)):
        sys.meta_path.append(_CheckoutFinder())


class _CheckoutDistribution(Distribution):
    """A distribution that consists of one entry point."""

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            return "Metadata-Version: 2.1\nName: pytest-pprank-checkout\nVersion: 0\n"
        return _ENTRY if filename == "entry_points.txt" else None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return Path(path)


class _CheckoutFinder(DistributionFinder):
    """Finds that distribution, and no module."""

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(
        self, context: DistributionFinder.Context | None = None
    ) -> Iterable[Distribution]:
        name = getattr(context, "name", None)
        return [_CheckoutDistribution()] if name in (None, "pytest-pprank-checkout") else []
