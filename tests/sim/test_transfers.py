"""Sanitizer `streams` with events of KV transfers that the tests make."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from pytest_pprank.checks.base import Watch
from pytest_pprank.checks.streams import Streams
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.sglang.events.types import KvQueued, KvRead


class Watched(Watch):
    """A Watch that keeps findings and listeners."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.listeners: dict[str, Callable[[Any], object]] = {}
        super().__init__("streams", SimpleNamespace(device="sim"), self.found.append)  # type: ignore[arg-type]
        Streams(self).begin()

    def listen(self, seam: str, listener: Callable[[Any], object]) -> None:
        self.listeners[seam] = listener


def test_a_chunk_may_count_on_what_was_done_when_it_was_queued(found: Any) -> None:
    """It must not depend on the state when a later chunk was queued, even before the read."""
    watch = Watched()
    kv = torch.zeros(4, device="sim")
    queued = watch.listeners["transfer_queued"]
    span = ((kv.data_ptr(), 4),)

    def read(event: KvRead) -> None:
        """Decode a read in a thread that has waited for nothing itself."""
        thread = threading.Thread(target=watch.listeners["transfer_read"], args=(event,))
        thread.start()
        thread.join()

    kv.add_(1)
    queued(KvQueued(1))
    torch.get_device_module("sim").synchronize()
    queued(KvQueued(2))
    queued(KvQueued(1, again=True))
    read(KvRead(span, 2))
    read(KvRead(span))
    assert not watch.found
    read(KvRead(span, 1))
    assert "a KV transfer reads 4 bytes" in watch.found[0].text
    assert len(found()) == 1
