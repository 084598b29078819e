"""Looking at the device's memory without being a part of the program; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_pprank.devices.sim import in_use
from pytest_pprank.devices.sim.settings import changed


def settle() -> None:
    """Let the host wait for the device, where it is in use: what comes is not compared with what
    came before.
    """
    if in_use():
        from pytest_pprank.devices.sim import streams

        streams.synchronize()


@contextmanager
def looking() -> Iterator[None]:
    """Read the device's memory in the block without being a part of the program: the host waits
    for nothing, nothing is recorded. What is still to be copied into it is there already.
    """
    if not in_use():
        yield
        return
    from pytest_pprank.devices.sim.streams import lock

    with lock, changed(looking=True, tracking=False):
        yield
