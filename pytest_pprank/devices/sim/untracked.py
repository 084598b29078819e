"""Reads of the device's memory that do not affect the program under test. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_pprank.devices.sim import in_use
from pytest_pprank.devices.sim.settings import changed


def wait_for_device() -> None:
    """Make the host wait for the device, if it is in use.

    Later accesses are then ordered after all earlier ones.
    """
    if in_use():
        from pytest_pprank.devices.sim import streams

        streams.synchronize()


@contextmanager
def untracked() -> Iterator[None]:
    """Leave accesses in this block untracked: the host waits for nothing, nothing is recorded.

    Copies that are still pending appear as performed.
    """
    if not in_use():
        yield
        return
    from pytest_pprank.devices.sim.streams import lock

    with lock, changed(untracked=True, tracking=False):
        yield
