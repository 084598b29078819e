"""The bootstrap server dies, transfers are torn, and reports of them come twice, late, or for a
room that is gone: the requests that need them fail, all others go on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.compat.disagg import known_prefills
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of, settle_and_leave
from pytest_pprank.suite.heartbeats import lose_prefill, miss_heartbeat

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank

CHUNK = 64
LIMIT = 300
"""Seconds: SGLang's limits for a handshake and for a transfer."""
FREED_EARLY = "decode-frees-what-an-aborted-transfer-still-writes"

pytestmark = [
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
    # SGLang logs failures
    pytest.mark.pprank(prefill=2, decode=1, sanitize="-logs"),
]

freed_early = pytest.mark.pprank(known_bug=FREED_EARLY)


@freed_early
def test_bootstrap_server_that_dies(disagg: Disagg, pprank: Pprank) -> None:
    """Decode takes prefill for dead: what it has not got from there fails, and what comes next,
    until there is a server again.
    """
    with disagg.clock.frozen():
        decoding = disagg.submit(30, 120)
        disagg.run_until(lambda: disagg.results[decoding].token_ids)
        held = disagg.slow_transfer(stages=[1])
        moving = disagg.submit(2 * CHUNK + 5, 6)
        disagg.run_until_state(moving, "transferring", role="prefill")
        disagg.bootstrap.stop()
        lose_prefill(disagg, pprank)
        disagg.run_until(lambda: disagg.results[moving].finished)
        reason = disagg.results[moving].finish_reason or {}
        assert re.search("Los(t|ing) connection with prefill", str(reason.get("message"))), reason
        assert not disagg.results[decoding].finished
        held.release()
        after = disagg.submit(40, 4)
        for _ in range(40):
            disagg.clock.advance(1)
            disagg.step()
        assert end_of(disagg.results[after]) == "abort"
        disagg.clock.advance(LIMIT)  # prefill's handshake with it
        disagg.drain()
        disagg.bootstrap.start()
        disagg.submit(50, 4)
        settle_and_leave(disagg, moving, after)


def test_reports_that_come_twice(disagg: Disagg, pprank: Pprank) -> None:
    """The two reports of one stage do not stand for those of two stages."""
    repeated = disagg.repeat_reports(stages=[0])
    slow = disagg.slow_transfer(stages=[1])
    rids = [disagg.submit(length, 5) for length in (30, 2 * CHUNK + 5)]
    disagg.step()
    disagg.run_until(lambda: [*disagg.prefill.stages[0].rooms.values()].count("Success") == 2)
    disagg.step(8)
    assert not any(disagg.results[rid].token_ids for rid in rids)
    slow.release()
    settle_and_leave(disagg)
    assert sum(pprank.gather(repeated.hits)) >= 2


@freed_early
def test_reports_for_a_room_that_is_gone(disagg: Disagg) -> None:
    """Decode has given the request up, and has cleared its room."""
    late = disagg.late_reports(stages=[0, 1])
    gone = disagg.submit(2 * CHUNK + 5, 6)
    disagg.step()
    disagg.run_until(lambda: disagg.chunks_done(gone) == 3)
    disagg.step(8)
    assert not disagg.results[gone].token_ids
    with disagg.clock.frozen():
        disagg.abort(gone, role="decode")
        disagg.run_until(lambda: disagg.results[gone].finished)
        disagg.step(4)
        disagg.clock.advance(LIMIT)  # of decode's wait for prefill's writes
        disagg.step(4)
        late.release()
        disagg.submit(40, 6)
        settle_and_leave(disagg, gone)


@pytest.mark.skipif(is_older_than("0.5.22"), reason=f"known bug {FREED_EARLY}, by chance")
def test_failure_that_is_reported_for_a_room_that_is_gone(disagg: Disagg) -> None:
    """It is not kept for the next request that gets the room."""
    late = disagg.late_reports(stages=[0, 1])
    failing = disagg.fail_transfer(stages=[0])
    gone = disagg.submit(2 * CHUNK + 5, 6)
    disagg.step()
    disagg.run_until(lambda: disagg.prefill.results[gone].finished)
    with disagg.clock.frozen():
        disagg.abort(gone, role="decode")
        disagg.run_until(lambda: disagg.results[gone].finished)
        disagg.clock.advance(LIMIT)  # of decode's wait for prefill's writes
        disagg.step(4)
        late.release()
        failing.release()
        disagg.submit(40, 6)
        settle_and_leave(disagg, gone)


def test_reports_that_come_late(disagg: Disagg) -> None:
    late = disagg.late_reports(stages=[1])
    rids = [disagg.submit(30 + 40 * index, 5) for index in range(3)]
    disagg.step(30)
    assert not any(disagg.results[rid].token_ids for rid in rids)
    late.release()
    settle_and_leave(disagg)


@freed_early
@pytest.mark.parametrize("stage", [0, 1], ids=["first", "last"])
def test_transfer_that_writes_a_part(disagg: Disagg, stage: int) -> None:
    """What has arrived is not taken for the whole."""
    decoding = disagg.submit(30, 40)
    disagg.run_until(lambda: disagg.results[decoding].token_ids)
    torn = disagg.fail_transfer(stages=[stage], torn=True)
    failed = disagg.submit(CHUNK - 1)
    disagg.run_until(lambda: disagg.results[failed].finished)
    torn.release()
    disagg.drain()
    disagg.submit(CHUNK, 5)
    settle_and_leave(disagg, failed)


@pytest.mark.pprank(known_bug="prefill-that-returns-has-missed-heartbeats")
def test_heartbeat_that_is_missed_after_a_return(disagg: Disagg, pprank: Pprank) -> None:
    """Prefill was lost and is reached again: a single missed heartbeat does not lose it again."""
    with disagg.clock.frozen():
        disagg.submit(30, 4)
        disagg.drain()
        disagg.bootstrap.stop()
        lose_prefill(disagg, pprank)
        disagg.bootstrap.start()
        disagg.submit(40, 4)
        disagg.drain()
        disagg.bootstrap.stop()
        miss_heartbeat(disagg, pprank)
        if pprank.role == "decode":
            assert known_prefills(disagg.scheduler), "one missed heartbeat has cost decode prefill"
        disagg.bootstrap.start()
        disagg.submit(50, 4)
        settle_and_leave(disagg)


@pytest.mark.skipif(is_older_than("0.5.22"), reason=f"known bug {FREED_EARLY}, by chance")
@pytest.mark.pprank(known_bug="decode-is-idle-while-prefill-writes")
def test_flush_of_decode_while_prefill_still_writes(disagg: Disagg) -> None:
    """Decode has given a request up, and keeps its memory until prefill has stopped writing."""
    disagg.generate([50], max_new_tokens=3)
    slow = disagg.slow_transfer(stages=[1])
    gone = disagg.submit(2 * CHUNK + 5, 6)
    disagg.run_until_state(gone, "transferring", role="prefill")
    disagg.abort(gone, role="decode")
    disagg.run_until(lambda: disagg.results[gone].finished)
    flush = disagg.control("flush_cache", role="decode", wait=True)
    assert not flush.answer.success, "decode has flushed memory that prefill still writes to"
    slow.release()
    disagg.drain()
    assert disagg.control("flush_cache", role="decode", wait=True).answer.success
    disagg.submit(40, 5)
    settle_and_leave(disagg, gone)
