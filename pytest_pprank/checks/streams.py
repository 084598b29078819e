"""Finds reads and writes of device memory that no stream, event or wait of the host orders.

KV transfers access memory by address, not through torch. Prefill's memory is read in threads of the
transfer engine. They may rely on work that was done when the chunk was handed to them, and on what
they have waited for. Decode's memory may be written from the moment on at which its addresses are
sent to prefill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.checks.device_order import report_order

if TYPE_CHECKING:
    from pytest_pprank.devices.sim.streams import Clock
    from pytest_pprank.sglang.events.types import KvQueued, KvRead, KvTarget

_ORDER = "make the second stream wait for the first: wait_stream, or an event and wait_event"


class Streams(Sanitizer):
    """Listens to the simulated device, and reports accesses that bypass torch to it.

    On device ``cuda`` it listens to torch's CUDA sanitizer.
    """

    name: ClassVar[str] = "streams"

    def begin(self) -> None:
        if self.watch.pprank.device.startswith("cuda"):
            from pytest_pprank.devices.cuda.order import watch_order

            watch_order(lambda text, stack: self.watch.report(text, stack, _ORDER), self.watch)
        else:
            self._watch_sim()

    def _watch_sim(self) -> None:
        from pytest_pprank.devices.sim.reports import Kind

        report_order(self.watch, (Kind.UNORDERED, Kind.FREED_IN_USE, Kind.RAW_ACCESS))
        self._handed: dict[int | None, Clock] = {}
        self.watch.listen("transfer_queued", self._hand_over)
        self.watch.listen("transfer_read", self._read)
        self.watch.listen("transfer_target", self._may_be_written)

    def _hand_over(self, event: KvQueued) -> None:
        """Note which work is done now: a transfer that begins later may rely on that only."""
        from pytest_pprank.devices.sim.streams import host

        if not event.again:
            self._handed[event.chunk] = self._handed[None] = host.now()

    def _read(self, event: KvRead) -> None:
        from pytest_pprank.devices.sim.streams import host
        from pytest_pprank.devices.sim.tracker import raw_access

        handed = self._handed.get(event.chunk, self._handed.get(None))
        known = host.now() if handed is None else host.of_this_thread(handed)
        for address, nbytes in event.spans:
            raw_access(address, nbytes, write=False, what="a KV transfer", clock=known)

    def _may_be_written(self, event: KvTarget) -> None:
        """Check for writes to the memory that are still to come; reads do not matter.

        Such a read is of a request that has ended: the overlap schedule runs one more forward for
        it, whose token is not used.
        """
        from pytest_pprank.devices.sim.tracker import raw_access

        what = "a KV transfer, from here on,"
        for address, nbytes in event.spans:
            raw_access(address, nbytes, write=True, what=what, reads_matter=False)
