"""A simulated accelerator: the torch device ``sim``, with CUDA's rules and without a GPU.

Its tensors are real tensors of torch's device ``PrivateUse1`` whose memory is host memory. Compute
runs at once with torch's CPU kernels; copies between pinned host memory and the device run as late
as CUDA's rules let them, and every access is checked against what is ordered before it. The rules,
where they come from and the test of each are in SEMANTICS.md beside this file.

`pytest_pprank.devices.sim.module.install` makes the device known to torch, once per process. This
file imports no torch: the controller may import it.
"""

import functools
import sys
from importlib import metadata

from pytest_pprank.devices.sim.settings import NAME

_OLDEST_TORCH = (2, 11)
"""The oldest one that its rules are tested with (tests/sim)."""


@functools.cache
def is_known_good() -> bool:
    """Say whether the installed torch is one that this device was tested with, or newer."""
    try:
        major, minor = metadata.version("torch").split(".")[:2]
    except metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= _OLDEST_TORCH


def in_use() -> bool:
    """Say whether torch knows the device in this process."""
    module = sys.modules.get(f"{__name__}.module")
    return module is not None and bool(module.installed())


__all__ = ["NAME", "in_use", "is_known_good"]
