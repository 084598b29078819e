"""Several instances of prefill, or of decode: each pair is on its own, whatever becomes of others.

Every instance of prefill has a bootstrap server, whose address a request has. A request goes to one
pair; what happens to it there, or to its pair, leaves the requests of other pairs alone.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of, settle_and_leave
from pytest_pprank.suite.heartbeats import lose_prefill

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Fault, Pprank
    from pytest_pprank.sglang.driver.disagg_side import Side

CHUNK = 64
FREED_EARLY = "decode-frees-what-an-aborted-transfer-still-writes"
LIMIT = 300
"""Seconds: SGLang's limits for a handshake and for a transfer."""
KEPT = 30
"""Seconds for which decode keeps memory to which prefill may still write."""

pytestmark = [
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
    # SGLang logs failures and time-outs
    pytest.mark.pprank(sanitize="-logs"),
]

freed_early = pytest.mark.pprank(known_bug=FREED_EARLY)


def assert_on_its_own(disagg: Disagg, pprank: Pprank) -> None:
    """Check that each instance has run its own requests, and no others."""
    ran = [rid for forward in disagg.forwards for rid in forward.rids]
    sides = (*disagg.prefills, *disagg.decodes)
    for name, rids in pprank.gather((pprank.instance, {*ran})):
        (side,) = (side for side in sides if side.name == name)
        assert rids == {*side.results}, f"{name} has run {sorted(rids)}"


def finish(disagg: Disagg, *rids: str) -> None:
    disagg.run_until(lambda: all(disagg.results[rid].finished for rid in rids))


def fail_a_transfer(disagg: Disagg, prefill: int, decode: int) -> tuple[str, Fault]:
    """Let a transfer fail on prefill's first stage, when its last stage has written its part."""
    fault = disagg.fail_transfer(stages=[0], index=prefill)
    slow = disagg.slow_transfer(stages=[0], index=prefill)  # first blocked, then refused
    rid = disagg.submit(2 * CHUNK + 5, prefill=prefill, decode=decode)
    disagg.step()
    side = disagg.prefills[prefill]
    disagg.run_until(lambda: "Success" in side.stages[-1].rooms.values())
    slow.release()
    finish(disagg, rid)
    return rid, fault


def assert_aborted(side: Side, rid: str, words: str) -> None:
    reason = side.results[rid].finish_reason or {}
    assert reason.get("type") == "abort", f"{side.name}: {rid}: {reason}"
    assert re.search(words, str(reason.get("message"))), f"{side.name}: {rid}: {reason}"


def resume(disagg: Disagg, role: str, index: int) -> None:
    """Let an instance go on until nothing is under way; its own time limits have not begun yet."""
    disagg.resume(role, index)
    disagg.step(12)
    disagg.clock.advance(LIMIT)  # before 0.5.20, prefill is not told of what decode has given up
    disagg.drain()


class MuteServer:
    """Accepts connections, and closes each one without an answer: when `count()` has changed, or
    after a second.
    """

    def __init__(self, port: int, count: Callable[[], int]) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))  # with SO_REUSEADDR
        self._count = count
        self._went_on: list[bool] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> list[bool]:
        """Close the server; return for each connection whether the count had changed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        return self._went_on

    def _serve(self) -> None:
        with suppress(OSError):  # shut down
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    before, end = self._count(), time.monotonic() + 1
                    while self._count() == before and time.monotonic() < end:
                        time.sleep(0.01)
                    self._went_on.append(self._count() != before)


@pytest.mark.pprank(prefill=[2, 2], decode=1)
class TestTwoOfPrefill:
    def test_requests_of_many_lengths(self, disagg: Disagg, pprank: Pprank) -> None:
        disagg.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7, 40], 5)
        assert [len(side.results) for side in disagg.prefills] == [3, 3]
        assert_on_its_own(disagg, pprank)
        settle_and_leave(disagg)

    def test_each_has_a_cache_of_its_own(self, disagg: Disagg) -> None:
        prompt = [*range(1000, 1000 + 2 * CHUNK + 9)]
        rids = []
        for index in (0, 1, 0, 1):
            rids.append(disagg.submit(prompt, 3, prefill=index))
            disagg.drain()
        cached = [disagg.results[rid].cached_tokens for rid in rids]
        assert cached == [0, 0, len(prompt) - 1, len(prompt) - 1]
        settle_and_leave(disagg)

    @freed_early
    def test_abort_while_one_transfers(self, disagg: Disagg) -> None:
        slow = disagg.slow_transfer(stages=[0, 1], index=1)
        aborted = disagg.submit(30, prefill=1)
        disagg.run_until_state(aborted, "transferring", role="prefill")
        finish(disagg, disagg.submit(3 * CHUNK, 5, prefill=0))
        assert not disagg.results[aborted].finished
        disagg.abort(aborted)
        disagg.step(4)
        slow.release()
        disagg.submit(40, 5, prefill=1)
        settle_and_leave(disagg, aborted)

    @freed_early
    def test_transfer_of_one_that_fails(self, disagg: Disagg) -> None:
        """That one sends nothing more to decode, which it takes for dead; the other one does."""
        other = disagg.submit(2 * CHUNK + 6, 5, prefill=1)
        failed, fault = fail_a_transfer(disagg, 0, 0)
        again = disagg.submit(30, prefill=0)
        finish(disagg, other, again, disagg.submit(31, 5, prefill=1))
        fault.release()
        disagg.submit(40, 5, prefill=0)
        settle_and_leave(disagg, failed, again)

    def test_one_that_stands_still(self, disagg: Disagg) -> None:
        with disagg.clock.frozen():
            disagg.stop("prefill", 0)
            lost = disagg.submit(40, prefill=0)
            finish(disagg, *[disagg.submit(30 + CHUNK * turn, 5, prefill=1) for turn in range(3)])
            assert not disagg.results[lost].finished
            disagg.clock.advance(LIMIT)
            finish(disagg, lost)
            assert_aborted(disagg.decode, lost, "timed out")
            finish(disagg, disagg.submit(50, 5, prefill=1))
            resume(disagg, "prefill", 0)
            disagg.submit(60, 5, prefill=0)
            settle_and_leave(disagg, lost)

    @freed_early
    def test_one_that_hangs_and_misses_its_heartbeats(self, disagg: Disagg, pprank: Pprank) -> None:
        """What decode waits for from the other one, in the middle of its transfer, goes on."""
        with disagg.clock.frozen():
            disagg.generate([30, 31], 3)  # decode has met both
            held = disagg.slow_transfer(stages=[1], index=1)
            kept = disagg.submit(2 * CHUNK + 5, 5, prefill=1)
            disagg.run_until_state(kept, "transferring", role="prefill")
            disagg.stop("prefill", 0)
            lost = disagg.submit(2 * CHUNK + 6, prefill=0)
            disagg.run_until_state(lost, "transferring")
            disagg.bootstraps[0].stop()
            lose_prefill(disagg, pprank, 0)
            finish(disagg, lost)
            assert_aborted(disagg.decode, lost, "Los(t|ing) connection with prefill")
            assert not disagg.results[kept].finished
            held.release()
            finish(disagg, kept, disagg.submit(40, 5, prefill=1))
            disagg.bootstraps[0].start()
            resume(disagg, "prefill", 0)
            disagg.submit(50, 5, prefill=0)
            settle_and_leave(disagg, lost)

    def test_one_that_dies(self, disagg: Disagg, pprank: Pprank) -> None:
        with disagg.clock.frozen():
            decoding = disagg.submit(30, 20, prefill=0)
            disagg.run_until(lambda: disagg.results[decoding].token_ids)
            held = disagg.slow_transfer(stages=[0, 1])
            lost, kept = (disagg.submit(2 * CHUNK + 5, 5, prefill=index) for index in (0, 1))
            for rid in (lost, kept):
                disagg.run_until_state(rid, "transferring", role="prefill")
            amid = [disagg.submit(5 * CHUNK, 5, prefill=index) for index in (0, 1)]
            disagg.step()
            disagg.run_until(lambda: all(disagg.chunks_done(rid) >= 2 for rid in amid))
            disagg.kill("prefill", 0)
            held.release()
            finish(disagg, kept, amid[1], disagg.submit(50, 5))
            assert not any(disagg.results[rid].finished for rid in (lost, amid[0]))
            lose_prefill(disagg, pprank, 0)
            finish(disagg, lost, amid[0])
            for rid in (lost, amid[0]):
                assert_aborted(disagg.decode, rid, "Los(t|ing) connection with prefill")
            late = disagg.submit(40, prefill=0)
            disagg.submit(60, 30)
            for _ in range(KEPT):
                disagg.clock.advance(1)  # decode looks for the dead one once a second, and gives up
                disagg.step()
            settle_and_leave(disagg, lost, amid[0], late)


@pytest.mark.pprank(prefill=2, decode=[1, 1])
class TestTwoOfDecode:
    def test_requests_of_many_lengths(self, disagg: Disagg, pprank: Pprank) -> None:
        disagg.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7, 40], 5)
        assert [len(side.results) for side in disagg.decodes] == [3, 3]
        assert_on_its_own(disagg, pprank)
        settle_and_leave(disagg)

    def test_prefix_that_the_other_one_has_got(self, disagg: Disagg) -> None:
        """Prefill has it in its cache; each instance of decode gets all of it."""
        prompt = [*range(1000, 1000 + 2 * CHUNK + 9)]
        for index in (0, 1):
            finish(disagg, disagg.submit(prompt, 3, decode=index))
        cached = [result.cached_tokens for result in disagg.results.values()]
        assert cached == [0, len(prompt) - 1]
        settle_and_leave(disagg)

    @freed_early
    def test_aborts_of_one(self, disagg: Disagg) -> None:
        """While it is decoded, transferred, and in the middle of its prompt."""
        decoded = [disagg.submit(30, 24, decode=0), disagg.submit(31, 300, decode=1)]
        disagg.run_until(lambda: all(disagg.results[rid].token_ids for rid in decoded))
        disagg.abort(decoded[1])
        slow = disagg.slow_transfer(stages=[0, 1])
        moving = [disagg.submit(40 + index, 5, decode=index) for index in (0, 1)]
        for rid in moving:
            disagg.run_until_state(rid, "transferring", role="prefill")
        disagg.abort(moving[1])
        disagg.step(4)
        slow.release()
        amid = [disagg.submit(5 * CHUNK, 5, decode=index) for index in (0, 1)]
        disagg.step()
        disagg.run_until(lambda: disagg.chunks_done(amid[1]) >= 2)
        disagg.abort(amid[1], in_time=False)
        settle_and_leave(disagg, decoded[1], moving[1], amid[1])

    @freed_early
    def test_transfer_to_one_that_fails(self, disagg: Disagg) -> None:
        """Prefill sends it nothing more, and goes on with the other one."""
        failed, fault = fail_a_transfer(disagg, 0, 1)
        other, again = disagg.submit(2 * CHUNK + 6, 5, decode=0), disagg.submit(30, decode=1)
        finish(disagg, other, again)
        fault.release()
        disagg.submit(40, 5, decode=1)
        settle_and_leave(disagg, failed, again)

    def test_one_that_is_full(self, disagg: Disagg) -> None:
        """What waits for a place there does not keep prefill from what goes to the other one."""
        full = [disagg.submit(20 + index, 400, decode=0) for index in range(10)]
        disagg.run_until(lambda: sum(bool(disagg.results[rid].token_ids) for rid in full) >= 6)
        finish(disagg, *[disagg.submit(CHUNK + index, 2, decode=1) for index in range(2)])
        assert not all(disagg.results[rid].token_ids for rid in full)
        for rid in full:
            disagg.abort(rid)
        settle_and_leave(disagg, *full)

    def test_one_that_begins_late(self, disagg: Disagg) -> None:
        """The other one has served some requests, when this one begins with what has come."""
        disagg.stop("decode", 1)
        finish(disagg, *[disagg.submit(30 + index, 4, decode=0) for index in range(3)])
        waiting = disagg.submit(2 * CHUNK + 5, 4, decode=1)
        finish(disagg, disagg.submit(40, 4, decode=0))
        assert not disagg.results[waiting].token_ids
        disagg.resume("decode", 1)
        disagg.submit(41, 4, decode=0)
        settle_and_leave(disagg)

    def test_one_that_stands_still(self, disagg: Disagg) -> None:
        with disagg.clock.frozen():
            decoding = disagg.submit(30, 20, decode=0)
            disagg.run_until(lambda: disagg.results[decoding].token_ids)
            disagg.stop("decode", 0)
            lost = disagg.submit(2 * CHUNK + 5, decode=0)
            finish(disagg, *[disagg.submit(30 + CHUNK * turn, 5, decode=1) for turn in range(3)])
            disagg.clock.advance(LIMIT)
            disagg.run_until(lambda: disagg.prefill.results[lost].finished)
            assert_aborted(disagg.prefill, lost, "timed out")
            finish(disagg, disagg.submit(50, 5, decode=1))
            assert not disagg.results[decoding].finished
            resume(disagg, "decode", 0)
            settle_and_leave(disagg, lost)

    def test_one_that_dies(self, disagg: Disagg) -> None:
        with disagg.clock.frozen():
            decoding = [disagg.submit(30, 30, decode=index) for index in (0, 1)]
            disagg.run_until(lambda: all(disagg.results[rid].token_ids for rid in decoding))
            held = disagg.slow_transfer(stages=[0, 1])
            moving = [disagg.submit(2 * CHUNK + 5, 5, decode=index) for index in (0, 1)]
            for rid in moving:
                disagg.run_until_state(rid, "transferring", role="prefill")
            amid = [disagg.submit(5 * CHUNK, 5, decode=index) for index in (0, 1)]
            disagg.step()
            disagg.run_until(lambda: disagg.chunks_done(amid[0]) >= 2)
            disagg.kill("decode", 0)
            lonely = disagg.submit(50, 5, decode=0)
            disagg.step(4)
            held.release()
            disagg.run_until(
                lambda: all(disagg.prefill.results[rid].finished for rid in (moving[0], amid[0]))
            )
            finish(disagg, moving[1], amid[1], disagg.submit(51, 5))
            assert not disagg.prefill.results[lonely].finished
            disagg.clock.advance(LIMIT)
            disagg.drain()
            for rid in (moving[0], amid[0]):
                assert_aborted(disagg.prefill, rid, "Prefill transfer failed")
            assert_aborted(disagg.prefill, lonely, "timed out")
            disagg.leave()
            assert_tokens_equal_reference(disagg.decodes[1].results.values())
            assert {end_of(result) for result in disagg.decodes[1].results.values()} == {"length"}
            assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)


@pytest.mark.pprank(prefill=[1, 1], decode=[1, 1])
def test_all_pairs(disagg: Disagg, pprank: Pprank) -> None:
    """With one stage each: the loops that SGLang uses without a pipeline."""
    disagg.generate([CHUNK * index + 3 for index in range(8)], 4)
    for side in (*disagg.prefills, *disagg.decodes):
        assert len(side.results) == 4, side.name
    assert_on_its_own(disagg, pprank)
    aborted = disagg.submit(30, 40)
    disagg.abort_when(aborted, "decoding")
    settle_and_leave(disagg, aborted)


@pytest.mark.pprank(prefill=[2, 1], decode=1)
class TestInstancesOfDifferentSizes:
    def test_requests_of_many_lengths(self, disagg: Disagg, pprank: Pprank) -> None:
        """Decode gets the layers of a request from two ranks, or from one."""
        disagg.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7, 40], 5)
        assert_on_its_own(disagg, pprank)
        settle_and_leave(disagg)

    @pytest.mark.pprank(known_bug="decode-waits-for-a-bootstrap-server")
    def test_one_whose_server_does_not_answer(self, disagg: Disagg, pprank: Pprank) -> None:
        """Decode asks it where that prefill is, and goes on with other requests meanwhile."""
        kept = disagg.submit(30, 30, prefill=0)
        disagg.run_until(lambda: disagg.results[kept].token_ids)
        disagg.bootstraps[1].stop()
        with disagg.clock.frozen():  # it asks once a second
            lose_prefill(disagg, pprank, 1)
            asked = self._mute_server(disagg) if pprank.role == "decode" else None
            disagg.submit(40, prefill=1)
            disagg.step(4)
            went_on = [True] if asked is None else asked.end()
            pprank.barrier()
        assert went_on, "decode has not asked the server"
        assert all(went_on), "decode has done no iteration while the server did not answer"
        disagg.bootstraps[1].start()
        settle_and_leave(disagg)

    def _mute_server(self, disagg: Disagg) -> MuteServer:
        return MuteServer(disagg.bootstraps[1].port, lambda: disagg.iterations)
