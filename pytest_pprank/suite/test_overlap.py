"""The overlap schedule: SGLang prepares a batch while the forward of the previous one may run.

What that forward reads must not be written, moved or given away meanwhile. On device sim the
sanitizer `streams` checks this. Only loops of one stage overlap: that for plain requests, and those
of prefill and of decode.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.grammars import NUMBERS, follows

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

CHUNK = 32
LOST_ABORT = "aborted-prompt-is-computed-to-its-end"
FREED_EARLY = "decode-frees-what-an-aborted-transfer-still-writes"
LATE_FENCE = "overlap-writes-what-a-forward-reads"

late_fence = pytest.mark.pprank(known_bug=LATE_FENCE)
one_stage = pytest.mark.pprank(pp=1)
one_stage_each = pytest.mark.pprank(prefill=1, decode=1)
little_kv = pytest.mark.sglang(
    max_total_tokens=192,
    max_running_requests=4,
    schedule_conservativeness=0.05,
    grammar_backend="xgrammar" if find_spec("xgrammar") else "none",
)

pytestmark = pytest.mark.sglang(disable_overlap_schedule=False, chunked_prefill_size=CHUNK)


def in_flight(engine: Engine) -> list[int]:
    """Return a list of how many results were awaited at each launch of a forward."""
    counts: list[int] = []
    engine.on_forward(lambda _: counts.append(len(engine.scheduler.result_queue)))
    return counts


def check(engine: Engine, *aborted: str) -> None:
    """Check that aborted requests end as such, all tokens are right, and all memory was freed."""
    engine.drain()
    for rid in aborted:
        assert end_of(engine.results[rid]) == "abort", rid
    finished = [r for r in engine.results.values() if end_of(r) != "abort"]
    assert_tokens_equal_reference(finished)
    # prefill keeps the room of a request that is aborted while it waits: see test_disagg
    assert_kv_balanced(engine.scheduler, allow_failed_rooms=True)


@one_stage
@little_kv
class TestOneStage:
    @late_fence
    def test_rows_that_are_given_out_while_a_forward_runs(self, engine: Engine) -> None:
        """Requests end one by one, and others get their rows and KV at once."""
        awaited = in_flight(engine)
        for index in range(12):
            engine.submit(5 + 7 * (index % 3), 1 + 5 * index % 9)
            engine.step(1)
        check(engine)
        assert 1 in awaited, "no forward was launched before the last one's result was taken"

    @late_fence
    def test_chunks_beside_decoding(self, engine: Engine) -> None:
        awaited = in_flight(engine)
        engine.submit(9, 30)
        engine.step(3)
        for length in (3 * CHUNK, CHUNK - 1, CHUNK + 1):
            engine.submit(length, 3)
            engine.step(2)
        check(engine)
        assert 1 in awaited

    @late_fence
    def test_prefixes(self, engine: Engine) -> None:
        """Prefixes of a running request, of one that has just ended, and of an older one."""
        prompt = [*range(1000, 1000 + 2 * CHUNK)]
        first = engine.submit(prompt, 6)
        engine.run_until(lambda: len(engine.results[first].token_ids) >= 2)
        engine.submit([*prompt, 7], 2)
        engine.run_until(lambda: engine.results[first].finished)
        engine.submit([*prompt, 8, 9], 4)
        engine.drain()
        engine.submit([*prompt[:CHUNK], 5], 4)
        check(engine)
        cached = [result.cached_tokens for result in engine.results.values()]
        assert cached == [0, 2 * CHUNK, 2 * CHUNK, CHUNK]

    @pytest.mark.pprank(perturb="-kv_pressure")  # the test depends on what is retracted, and when
    @late_fence
    def test_requests_that_are_retracted(self, engine: Engine) -> None:
        """They free KV that the running forward still writes, and return in chunks."""
        for index in range(4):
            # SGLang expects them to end before max_new_tokens: not all at the same time, and only
            # if they can (with tokens to stop at)
            engine.submit(30 + index, 40, stop_token_ids=[1])
            engine.step(2)
        check(engine)
        assert any(result.retractions for result in engine.results.values())

    @late_fence
    def test_stop_token(self, engine: Engine) -> None:
        """The end is known one step late: another forward has run, and its token is dropped."""
        (whole,) = engine.generate([60])
        stop = whole.token_ids[3]
        last = whole.token_ids.index(stop) + 1
        stopped = engine.submit(whole.prompt, 20, stop_token_ids=[stop])
        engine.submit(20, 12)
        engine.run_until(lambda: engine.results[stopped].finished)
        engine.submit(25, 6)  # gets its slot
        check(engine)
        assert engine.results[stopped].token_ids == whole.token_ids[:last]
        decoded = [f for f in engine.forwards if f.mode == "decode" and stopped in f.rids]
        assert len(decoded) == last, "as many as tokens, the first of which is not decode's"

    @late_fence
    def test_logprobs_and_sampling(self, engine: Engine) -> None:
        """The forward has more inputs and more outputs than tokens."""
        results = engine.generate([12, 50], logprobs=True, max_new_tokens=9)
        engine.generate([20, 33], temperature=0.7, top_k=5, frequency_penalty=0.5)
        assert_tokens_equal_reference(results)
        assert all(len(result.logprobs) == len(result.token_ids) for result in results)
        assert_kv_balanced(engine.scheduler)

    @pytest.mark.skipif(find_spec("xgrammar") is None, reason="xgrammar is not installed")
    @pytest.mark.skipif(
        is_older_than("0.5.18"), reason="before 0.5.18 SGLang has no grammars on device cpu"
    )
    def test_grammar(self, engine: Engine) -> None:
        """Sampling depends on the previous token, which the host must have received."""
        rid, free = engine.submit(17, 8, regex=NUMBERS), engine.submit(20, 12)
        engine.drain()
        assert follows(engine.results[rid].token_ids, NUMBERS)
        assert_tokens_equal_reference(engine.results[free])
        assert_kv_balanced(engine.scheduler)

    # with this perturbation the requests would not get the KV that they need
    @pytest.mark.pprank(perturb="-kv_pressure", known_bug=(LOST_ABORT, LATE_FENCE))
    def test_aborts(self, engine: Engine) -> None:
        """In each state, while a forward of the same request is running or just launched."""
        aborted = []
        engine.submit(6, 60)
        for steps in range(8):
            aborted.append(engine.submit(2 * CHUNK + 5, 100))
            engine.step(1 + steps)
            engine.abort(aborted[-1])
            engine.submit(4 + steps, 3)
        check(engine, *aborted)


@one_stage
@little_kv
@late_fence
@pytest.mark.sglang(enable_mixed_chunk=True)
def test_chunks_in_one_batch_with_decoding(engine: Engine) -> None:
    """Such a batch gets some of its tokens from the previous forward."""
    awaited = in_flight(engine)
    for index in range(6):
        engine.submit((9, 3 * CHUNK, 20)[index % 3], 12)
        engine.step(2)
    check(engine)
    assert any(forward.mode == "mixed" for forward in engine.forwards)
    assert 1 in awaited


@one_stage_each
class TestOneStageEach:
    def test_requests_that_come_one_after_another(self, disagg: Disagg) -> None:
        """Rows and KV of finished requests are given to requests whose KV is arriving."""
        awaited = in_flight(disagg)
        for index in range(10):
            disagg.submit(5 + 7 * (index % 3), 1 + 5 * index % 9)
            disagg.step(2)
        check(disagg)
        assert 1 in awaited or disagg.scheduler.disaggregation_mode.value == "prefill"

    def test_prefix_that_is_cached(self, disagg: Disagg) -> None:
        """Its KV is sent before the forward of the rest, but after one that may still write it."""
        awaited = in_flight(disagg)
        prompt = [*range(1000, 1000 + 2 * CHUNK)]
        for tail in range(4):
            disagg.submit([*prompt, *range(5, 6 + tail)], 3)
            disagg.step(1)
        check(disagg)
        assert 1 in awaited

    @pytest.mark.pprank(perturb="-polls")  # both should become ready at about the same time
    def test_prefix_that_is_still_computed(self, disagg: Disagg, pprank: Pprank) -> None:
        """Two prompts begin with the same two chunks.

        The second chunk of the first prompt is in the cache as soon as its forward is launched. It
        then is a cached prefix of the other prompt, which may be sent at once. The time at which a
        handshake completes depends on threads, so some pairs may miss each other.
        """

        def met() -> bool:
            starts = [[start for start, _ in forward.extends] for forward in disagg.forwards]
            return any(pprank.gather([2 * CHUNK] * 2 in starts))

        for pair in range(8):
            prompt = [*range(1000 + pair, 1000 + pair + 2 * CHUNK)]
            for tail in ((7, 8, 9), (5, 6)):
                disagg.submit([*prompt, *tail], 3)
            disagg.drain()
            if met():
                break
        else:
            pytest.fail("no prompt began while the forward of its prefix was under way")
        check(disagg)

    def test_stop_token(self, disagg: Disagg) -> None:
        (whole,) = disagg.generate([60])
        stop = whole.token_ids[3]
        last = whole.token_ids.index(stop) + 1
        stopped = disagg.submit(whole.prompt, 20, stop_token_ids=[stop])
        disagg.submit(20, 12)
        disagg.run_until(lambda: disagg.results[stopped].finished)
        disagg.submit(25, 6)
        check(disagg)
        assert disagg.results[stopped].token_ids == whole.token_ids[:last]

    @pytest.mark.parametrize(
        "state",
        [
            pytest.param("waiting", marks=pytest.mark.pprank(known_bug=LOST_ABORT)),
            pytest.param("transferring", marks=pytest.mark.pprank(known_bug=FREED_EARLY)),
            "decoding",
        ],
    )
    def test_abort(self, disagg: Disagg, state: str) -> None:
        disagg.submit(8, 20)
        rid = disagg.submit(3 * CHUNK, 50)
        disagg.abort_when(rid, state, at="prefill" if state == "waiting" else "decode")
        disagg.submit(11, 5)
        check(disagg, rid)


@one_stage_each
@pytest.mark.sglang(decode={"max_total_tokens": 192, "num_reserved_decode_tokens": 2})
class TestLittleKvOnDecode:
    @pytest.mark.pprank(known_bug="decode-offers-kv-that-a-forward-still-writes")
    def test_kv_that_goes_from_one_request_to_the_next(self, disagg: Disagg) -> None:
        """The next request gets no memory on decode before the first one ends. The last forward of
        that one may still write when prefill is told where to write.
        """
        for length in (100, 110, 120):
            disagg.submit(length, 3)
        check(disagg)

    def test_requests_that_are_retracted(self, disagg: Disagg) -> None:
        """Decode keeps their KV on the host, and writes it back while a forward runs."""
        for index in range(4):  # no two of them fit; when one ends, another one can return
            disagg.submit(20 + index, 80 + 5 * index)
        check(disagg)
        assert any(result.retractions for result in disagg.results.values())


@pytest.mark.pprank(prefill=2, decode=1)
def test_decode_behind_a_pipeline(disagg: Disagg, pprank: Pprank) -> None:
    """Stages of a pipeline never overlap, whatever the server args; decode's single stage does."""
    awaited = in_flight(disagg) if pprank.role == "decode" else [1]
    for index in range(6):
        disagg.submit(10 + 30 * (index % 2), 2 + 3 * (index % 3))
        disagg.step(2)
    check(disagg)
    assert 1 in awaited
