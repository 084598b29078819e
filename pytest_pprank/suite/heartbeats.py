"""Heartbeats: decode gives prefill up if it misses two of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.compat.disagg import known_prefills, missed_heartbeats

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank


def lose_prefill(disagg: Disagg, pprank: Pprank, index: int = 0) -> None:
    """Move decode's clocks on until they have given an instance of prefill up: after two
    heartbeats, 5 s apart.
    """
    port, decode = disagg.bootstraps[index].port, pprank.role == "decode"
    for _ in range(12):
        disagg.clock.advance(5, role="decode")
        for _ in range(50):  # a heartbeat takes some time, in a thread of its own
            if not any(pprank.gather(decode and port in known_prefills(disagg.scheduler))):
                return
            time.sleep(0.01)
    pytest.fail(f"decode has not missed the heartbeats of {disagg.bootstraps[index].instance}")


def miss_heartbeat(disagg: Disagg, pprank: Pprank) -> None:
    """Move decode's clock on until it has missed one more heartbeat, whatever follows from that."""
    decode, port = pprank.role == "decode", disagg.bootstrap.port
    before = missed_heartbeats(disagg.scheduler) if decode else 0
    for _ in range(6):
        disagg.clock.advance(5, role="decode")
        for _ in range(50):
            # giving prefill up forgets the count
            missed = decode and missed_heartbeats(disagg.scheduler) != before
            lost = decode and port not in known_prefills(disagg.scheduler)
            if any(pprank.gather(missed or lost)):
                return
            time.sleep(0.01)
    pytest.fail("decode has not missed a heartbeat of prefill")
