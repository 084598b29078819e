"""Reads and writes of device memory that no stream, event or wait of the host orders."""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.sanitizers.base import Sanitizer
from pytest_pprank.sanitizers.device_order import report_order


class Streams(Sanitizer):
    """Listens to the simulated device."""

    name: ClassVar[str] = "streams"

    def begin(self) -> None:
        from pytest_pprank.devices.sim.reports import Kind

        report_order(self.watch, (Kind.UNORDERED, Kind.FREED_IN_USE, Kind.RAW_ACCESS))
