"""A simulated accelerator: the torch device ``sim``, with CUDA's rules and without a GPU.

Its tensors are real tensors of torch's device ``PrivateUse1`` whose memory is host memory. Compute
runs at once with torch's CPU kernels. Copies between pinned host memory and the device run as late
as CUDA's rules allow. Every access is checked against those ordered before it. SEMANTICS.md in this
folder lists the rules, their sources and their tests.

`pytest_pprank.devices.sim.module.install` registers the device with torch, once per process. This
file imports no torch: the controller may import it.
"""

import functools
import sys
from importlib import metadata

from pytest_pprank.devices.sim.settings import NAME

_OLDEST_TORCH = (2, 11)
"""The oldest torch on which the device's rules are tested (tests/sim)."""


@functools.cache
def is_known_good() -> bool:
    """Return whether the installed torch is one that this device was tested with, or newer."""
    try:
        major, minor = metadata.version("torch").split(".")[:2]
    except metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= _OLDEST_TORCH


def in_use() -> bool:
    """Return whether the device is registered with torch in this process."""
    module = sys.modules.get(f"{__name__}.module")
    return module is not None and bool(module.installed())


__all__ = ["NAME", "in_use", "is_known_good"]
