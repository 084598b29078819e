"""Heartbeats: decode gives prefill up if it misses two of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.compat.disagg import knows_prefill, missed_heartbeats

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank


def lose_prefill(disagg: Disagg, pprank: Pprank) -> None:
    """Move decode's clock on until it has given prefill up: after two heartbeats, 5 s apart."""
    decode = pprank.role == "decode"
    for _ in range(12):
        disagg.clock.advance(5, role="decode")
        for _ in range(50):  # a heartbeat takes some time, in a thread of its own
            if any(pprank.gather(decode and not knows_prefill(disagg.scheduler))):
                return
            time.sleep(0.01)
    pytest.fail("decode has not missed the heartbeats of prefill")


def miss_heartbeat(disagg: Disagg, pprank: Pprank) -> None:
    """Move decode's clock on until it has missed one more heartbeat, whatever follows from that."""
    decode = pprank.role == "decode"
    before = missed_heartbeats(disagg.scheduler) if decode else 0
    for _ in range(6):
        disagg.clock.advance(5, role="decode")
        for _ in range(50):
            # giving prefill up forgets the count
            missed = decode and missed_heartbeats(disagg.scheduler) != before
            if any(pprank.gather(missed or (decode and not knows_prefill(disagg.scheduler)))):
                return
            time.sleep(0.01)
    pytest.fail("decode has not missed a heartbeat of prefill")
