"""Time limits of SGLang: at the edge, on one stage first, and while an abort comes.

SGLang's clocks stand, and the test moves them (`engine.clock`), so no test waits. Time differs from
one process to another: stages may not decide by their own clocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

CHUNK = 64
LIMIT = 300
"""Seconds: the default of most limits, and what the tests set the others to."""
MOMENT = 1 / 512
"""Seconds: clocks that stand show multiples of it, so that a test meets a limit exactly."""

# SGLang logs most time-outs
pytestmark = pytest.mark.pprank(sanitize="-logs")


@contextmanager
def limit_of(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Set a limit in this block on this rank; SGLang reads it in each iteration."""
    with monkeypatch.context() as patch:
        patch.setenv(name, str(LIMIT))
        yield


def check(engine: Engine, *late: str, words: str = "", status: int | None = None) -> None:
    """Check that requests in `late` have ended with this reason, and all others with their tokens;
    and that all memory was freed.
    """
    engine.drain()
    for rid in late:
        reason = engine.results[rid].finish_reason or {}
        assert reason.get("type") == "abort", (rid, reason)
        assert words in str(reason.get("message")), (rid, reason)
        assert status is None or reason.get("status_code") == status, (rid, reason)
    others = [result for rid, result in engine.results.items() if rid not in late]
    assert {end_of(result) for result in others} <= {"length"}
    if others:
        assert_tokens_equal_reference(others)
    assert_kv_balanced(engine.scheduler, allow_failed_rooms=True)


def turns(engine: Engine, pprank: Pprank) -> None:
    """Run as many iterations as a decision needs to take effect on all stages."""
    for _ in range(4 * pprank.world_size):  # step by step: stages that differ deadlock soon
        engine.step()


@pytest.mark.sglang(max_running_requests=1, chunked_prefill_size=CHUNK)
class TestRequests:
    @pytest.fixture(autouse=True)
    def _frozen(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with (
            engine.clock.frozen(),
            limit_of(monkeypatch, "SGLANG_REQ_WAITING_TIMEOUT"),
            limit_of(monkeypatch, "SGLANG_REQ_RUNNING_TIMEOUT"),
        ):
            yield

    def fill(self, engine: Engine) -> str:
        """Let a request run that leaves no slot to others."""
        rid: str = engine.submit(30, 80)
        engine.run_until(lambda: engine.results[rid].token_ids)
        return rid

    def test_waiting_as_long_as_allowed(self, engine: Engine, pprank: Pprank) -> None:
        """Another one has run too long and ends, at the last moment; its slot is free then."""
        busy = self.fill(engine)
        engine.clock.advance(2 * MOMENT)
        waits = [engine.submit(20 + index, 3) for index in range(2)]
        turns(engine, pprank)
        engine.clock.advance(LIMIT - MOMENT)
        engine.run_until(lambda: engine.results[busy].finished)
        check(engine, busy, words="running timeout", status=503)
        assert {end_of(engine.results[rid]) for rid in waits} == {"length"}

    def test_waiting_too_long(self, engine: Engine, pprank: Pprank) -> None:
        busy = self.fill(engine)
        late = [engine.submit(20 + index, 3) for index in range(2)]
        turns(engine, pprank)
        engine.clock.advance(2 * MOMENT)
        early = engine.submit(50, 4)
        turns(engine, pprank)
        engine.clock.advance(LIMIT - MOMENT)
        engine.run_until(lambda: all(engine.results[rid].finished for rid in late))
        engine.drain()
        for rid, words in {**dict.fromkeys(late, "waiting"), busy: "running"}.items():
            reason = engine.results[rid].finish_reason or {}
            assert f"{words} timeout" in str(reason.get("message")), (rid, reason)
        check(engine, *late, busy, status=503)
        assert end_of(engine.results[early]) == "length"

    @pytest.mark.pprank(known_bug="stages-time-out-by-their-own-clocks")
    @pytest.mark.parametrize("stage", ["first", "last"])
    @pytest.mark.parametrize("state", ["waiting", "prompt", "decoding"])
    def test_one_stage_first(self, engine: Engine, pprank: Pprank, stage: str, state: str) -> None:
        """The first stage decides for all: a later one whose clock is ahead ends nothing."""
        if state == "waiting":
            self.fill(engine)
            rid = engine.submit(31, 4)
            turns(engine, pprank)
        elif state == "prompt":
            rid = engine.submit(16 * CHUNK, 4)
            engine.run_until(lambda: engine.chunks_done(rid) >= 2)
        else:
            rid = engine.submit(30, 40)
            engine.run_until(lambda: len(engine.results[rid].token_ids) >= 2)
        first = stage == "first"
        engine.clock.advance(LIMIT + 1, [0 if first else pprank.num_stages - 1])
        if first or pprank.num_stages == 1:
            engine.run_until(lambda: engine.results[rid].finished)
            ended = [r.rid for r in engine.results.values() if r.finished and end_of(r) == "abort"]
            assert rid in ended
        else:
            turns(engine, pprank)
            ended = []
        engine.clock.run()
        check(engine, *ended)

    @pytest.mark.parametrize(
        "state",
        [
            pytest.param(
                "prompt",
                marks=pytest.mark.pprank(known_bug="aborted-prompt-is-computed-to-its-end"),
            ),
            "decoding",
        ],
    )
    def test_abort_at_the_same_moment(self, engine: Engine, pprank: Pprank, state: str) -> None:
        """The request ends once, for one of the two reasons."""
        rid = engine.submit(16 * CHUNK if state == "prompt" else 30, 60)
        engine.run_until(
            lambda: (
                engine.chunks_done(rid) >= 2
                if state == "prompt"
                else len(engine.results[rid].token_ids) >= 2
            )
        )
        engine.clock.advance(LIMIT + 1)
        engine.abort(rid)
        check(engine, rid)
        engine.submit(40, 5)
        turns(engine, pprank)
        check(engine, rid)

    @pytest.mark.pprank(known_bug="prompt-that-runs-too-long-ends-without-reason")
    def test_reason_of_a_prompt_that_takes_too_long(self, engine: Engine) -> None:
        rid = engine.submit(16 * CHUNK, 4)
        engine.run_until(lambda: engine.chunks_done(rid) >= 2)
        engine.clock.advance(LIMIT + 1)
        engine.drain()
        check(engine, rid, words="running timeout", status=503)


class TestFlush:
    def test_flush_that_waits_too_long(self, engine: Engine, pprank: Pprank) -> None:
        with engine.clock.frozen():
            engine.submit(30, 60)
            engine.run_until(
                lambda: (
                    engine.results and all(result.token_ids for result in engine.results.values())
                )
            )
            flush = engine.control("flush_cache", timeout_s=float(LIMIT))
            turns(engine, pprank)
            engine.clock.advance(LIMIT - MOMENT)
            turns(engine, pprank)
            assert flush.answer is None
            engine.clock.advance(MOMENT)
            assert not flush.wait().success
        check(engine)

    @pytest.mark.pprank(known_bug="stages-give-up-a-flush-by-their-own-clocks")
    def test_flush_that_one_stage_gives_up(self, engine: Engine, pprank: Pprank) -> None:
        """Its stages either all flush their caches or none."""
        prompt = [*range(1000, 1100)]
        engine.generate([prompt], 2)
        with engine.clock.frozen():
            rid = engine.submit(30, 20)
            engine.run_until(lambda: engine.results[rid].token_ids)
            flush = engine.control("flush_cache", timeout_s=float(LIMIT))
            turns(engine, pprank)
            assert flush.answer is None
            engine.clock.advance(LIMIT, [pprank.num_stages - 1])
            turns(engine, pprank)
            engine.drain()
        flush.wait()
        engine.generate([[*prompt, 7]], 3)
        check(engine)


@pytest.mark.pprank(prefill=2, decode=1)
@pytest.mark.sglang(chunked_prefill_size=CHUNK)
class TestDisagg:
    def test_prefill_whose_decode_does_not_come(self, disagg: Disagg) -> None:
        with disagg.clock.frozen():
            rid = disagg.submit(30, to="prefill")
            other = disagg.submit(40, 5)
            disagg.run_until(lambda: disagg.results[other].finished)
            disagg.clock.advance(LIMIT - MOMENT)
            disagg.step(12)
            assert not disagg.prefill.results[rid].finished
            disagg.clock.advance(MOMENT)
            disagg.run_until(lambda: disagg.prefill.results[rid].finished)
        assert end_of(disagg.prefill.results[rid]) == "abort"
        check(disagg)

    def test_decode_whose_prefill_does_not_come(self, disagg: Disagg) -> None:
        with disagg.clock.frozen():
            rid = disagg.submit(30, to="decode")
            other = disagg.submit(40, 5)
            disagg.run_until(lambda: disagg.results[other].finished)
            assert disagg.state(rid)["decode"] == ("transferring",)
            disagg.clock.advance(LIMIT - MOMENT)
            disagg.step(12)
            assert not disagg.results[rid].finished
            disagg.clock.advance(MOMENT)
            disagg.run_until(lambda: disagg.results[rid].finished)
            disagg.drain()
        check(disagg, rid)

    @pytest.mark.parametrize("stages", [[0], [1]], ids=["first", "last"])
    def test_prefill_stage_that_gives_up_first(self, disagg: Disagg, stages: list[int]) -> None:
        """One stage of prefill finds that the handshake has taken too long, the other not yet: all
        of them give the request up, or none.
        """
        with disagg.clock.frozen():
            rid = disagg.submit(30, to="prefill")
            other = disagg.submit(40, 30)
            disagg.run_until(lambda: disagg.results[other].token_ids)  # it has shaken hands
            disagg.run_until_state(rid, "bootstrapping", role="prefill")
            disagg.clock.advance(LIMIT, stages, role="prefill")
            disagg.step(12)
            disagg.forward(rid, to="decode")
            disagg.step(12)
            disagg.clock.advance(LIMIT)
            disagg.drain()
        # decode's message has revived the room on prefill; its abort has a way to go, too
        disagg.run_until(
            lambda: all({*v.rooms.values()} <= {"Failed"} for v in disagg.prefill.stages)
        )
        # prefill's answer may be another one: prefill-answers-by-its-first-stage-alone
        check(disagg, *([rid] if end_of(disagg.results[rid]) == "abort" else []))
        assert end_of(disagg.results[other]) == "length"

    @pytest.mark.pprank(known_bug="decode-frees-what-an-aborted-transfer-still-writes")
    @pytest.mark.parametrize("stage", [0, 1])
    def test_transfer_that_takes_too_long(self, disagg: Disagg, stage: int) -> None:
        """Decode gives up; it keeps the memory until prefill no longer writes to it."""
        slow = disagg.slow_transfer(stages=[stage])
        with disagg.clock.frozen():
            late = disagg.submit(2 * CHUNK + 5)
            disagg.run_until_state(late, "transferring", role="prefill")
            disagg.clock.advance(LIMIT)
            disagg.run_until(lambda: disagg.results[late].finished)
            later = disagg.submit(40, 5)
            disagg.step(4)
            slow.release()
            disagg.drain()
        check(disagg, late)
        assert end_of(disagg.results[later]) == "length"
