"""Aborts of requests in every state: other requests continue, and all memory is freed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

CHUNK = 64

chunked = pytest.mark.sglang(chunked_prefill_size=CHUNK)


def check(engine: Engine, *aborted: str) -> None:
    """Check that aborted requests end as such, all tokens are right, and all memory was freed."""
    engine.drain()
    for rid in aborted:
        assert end_of(engine.results[rid]) == "abort", rid
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_request_that_has_not_begun(engine: Engine) -> None:
    aborted, _ = engine.submit(40), engine.submit(41)
    engine.abort(aborted)
    check(engine, aborted)


@pytest.mark.pprank(perturb="-kv_pressure")  # a retracted request would wait, too
def test_request_that_waits_for_its_turn(engine: Engine) -> None:
    """It never gets one of the 8 request slots."""
    running = [engine.submit(20 + index, 12) for index in range(8)]
    waiting = [engine.submit(60 + index, 5) for index in range(3)]
    engine.run_until(lambda: all(engine.results[rid].token_ids for rid in running))
    assert all(view.waiting == tuple(waiting) for view in engine.stages)
    engine.abort(waiting[1])
    check(engine, waiting[1])
    assert not any(waiting[1] in forward.rids for forward in engine.forwards)
    assert all(end_of(engine.results[rid]) == "length" for rid in running)


def test_running_request(engine: Engine) -> None:
    aborted, _ = engine.submit(40, 200), engine.submit(41, 12)
    engine.run_until(lambda: len(engine.results[aborted].token_ids) >= 3)
    engine.abort(aborted)
    check(engine, aborted)
    assert len(engine.results[aborted].token_ids) < 200


def test_request_in_every_slot(engine: Engine, pprank: Pprank) -> None:
    """The request is not in the microbatch slot whose turn it is (PR 29405)."""
    for turn in range(pprank.num_stages):
        rid = engine.submit(20, 100)
        engine.run_until(lambda: len(engine.results[rid].token_ids) >= 2)  # noqa: B023
        engine.step(1 + turn)
        engine.abort(rid)
        engine.drain()
        assert end_of(engine.results[rid]) == "abort"
        assert len(engine.results[rid].token_ids) < 100
    check(engine)


@pytest.mark.pprank(known_bug="abort-misses-other-microbatch-slots")
def test_request_at_its_first_token(engine: Engine, pprank: Pprank) -> None:
    """Its prompt is being computed somewhere between the first and the last stage."""
    for turn in range(2 * pprank.num_stages):
        rid = engine.submit(20 + turn, 100)
        engine.step(1 + turn)
        engine.abort(rid)
        engine.submit(5 + turn, 3)
        engine.drain()
        assert end_of(engine.results[rid]) == "abort"
    check(engine)


def test_request_at_its_last_token(engine: Engine, pprank: Pprank) -> None:
    """The abort arrives while the last token is computed, or after the end."""
    for turn in range(2 * pprank.num_stages):
        rid = engine.submit(20 + turn, 5)
        engine.run_until(lambda: len(engine.results[rid].token_ids) >= 4)  # noqa: B023
        engine.step(1 + turn)
        engine.abort(rid)
        engine.abort(rid)
    check(engine)


@pytest.mark.skipif(
    is_older_than("0.5.16"), reason="known bug abort-misses-other-microbatch-slots, by chance"
)
@pytest.mark.pprank(perturb="1:+aborts")
def test_requests_in_any_state(engine: Engine) -> None:
    """The seed decides, also in the middle of the skew between stages that it causes."""
    for length in range(10, 130, 10):
        engine.submit(length, 16)
        engine.step(2)
    check(engine)
    reasons = {end_of(result) for result in engine.results.values()}
    assert reasons <= {"abort", "length"}


def test_all_requests_at_once(engine: Engine) -> None:
    """The pipeline becomes empty at once, and new requests arrive immediately."""
    aborted = [engine.submit(20 + index, 100) for index in range(10)]
    engine.run_until(lambda: len(engine.results[aborted[0]].token_ids) >= 2)
    engine.abort()
    engine.step(1)
    engine.submit(30, 4)
    engine.submit(300, 4)
    check(engine, *aborted)


@chunked
@pytest.mark.pprank(known_bug="aborted-prompt-is-computed-to-its-end")
def test_request_in_the_middle_of_its_prompt(engine: Engine) -> None:
    aborted, _ = engine.submit(8 * CHUNK), engine.submit(30)
    engine.run_until(lambda: engine.chunks_done(aborted) >= 2)
    engine.abort(aborted)
    check(engine, aborted)


@chunked
@pytest.mark.pprank(known_bug="aborted-prompt-is-computed-to-its-end")
def test_request_at_each_chunk_beside_others(engine: Engine) -> None:
    """Others are being decoded or wait; each time a different number of chunks is done."""
    aborted = []
    engine.submit(20, 60)
    for chunks in (1, 3, 4):
        aborted.append(engine.submit(4 * CHUNK))
        rid, _ = aborted[-1], engine.submit(2 * CHUNK + chunks, 2)
        engine.run_until(lambda: engine.chunks_done(rid) >= chunks)  # noqa: B023
        engine.abort(rid)
        engine.step(1)
    check(engine, *aborted)


@chunked
@pytest.mark.pprank(known_bug="abort-misses-other-microbatch-slots")
def test_all_requests_while_one_is_in_the_middle_of_its_prompt(engine: Engine) -> None:
    aborted = [engine.submit(length, 50) for length in (10, 6 * CHUNK, 3 * CHUNK)]
    engine.run_until(lambda: engine.chunks_done(aborted[1]) >= 2)
    engine.abort()
    engine.submit(3 * CHUNK + 1, 3)
    check(engine, *aborted)
