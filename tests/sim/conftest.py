"""Tests of the simulated device, in this process. The device changes torch, so `tox -e sim` runs
them apart from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    from pytest_pprank.devices.sim import module

    module.install()


@pytest.fixture(autouse=True)
def _clean(_device: None) -> Iterator[None]:
    """Start without findings, with no copies in flight, on the default stream of device 0."""
    import torch

    from pytest_pprank.devices.sim.reports import findings
    from pytest_pprank.devices.sim.transfers import take_transfers

    torch.sim.set_device(0)
    for device in range(2):
        torch.sim.synchronize(device)
    findings()
    take_transfers()
    yield
    left = findings()
    assert not left, f"nobody looked at: {left[0]}"


@pytest.fixture
def found() -> Callable[[], list[Any]]:
    """Return a function that returns the device's findings since the last call."""
    from pytest_pprank.devices.sim.reports import findings

    return findings
