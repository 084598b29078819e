"""Scarce resources: KV for all running requests, or slots for more than one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

CHUNK = 64

little_kv = pytest.mark.sglang(
    max_total_tokens=128, schedule_conservativeness=0.05, chunked_prefill_size=32
)
one_at_a_time = pytest.mark.sglang(max_running_requests=1, chunked_prefill_size=CHUNK)


@little_kv
def test_requests_that_are_retracted(engine: Engine) -> None:
    """There are more tokens than KV: some requests free theirs, and are recomputed."""
    results = engine.generate([20 + index for index in range(5)], max_new_tokens=24)
    assert any(result.retractions for result in results)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


@little_kv
@pytest.mark.pprank(perturb="-kv_pressure")  # the test depends on what is retracted, and when
def test_retracted_requests_beside_chunks(engine: Engine, pprank: Pprank) -> None:
    """A retracted request returns as a longer prompt, itself in chunks, behind another prompt."""
    for length in (28, 26, 24):
        engine.submit(length, 24)
    engine.run_until(lambda: all(result.token_ids for result in engine.results.values()))
    engine.submit(CHUNK, 4)
    engine.drain()
    retracted = [result for result in engine.results.values() if result.retractions]
    if pprank.num_stages == 2:  # with more stages, all requests fit into the slots
        # the last forward of a prompt begins where an earlier one of the same prompt ended
        pieces = [result.extends[-2:] for result in retracted]
        assert any(end == start > 0 for (_, end), (start, _) in pieces), engine.results
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@little_kv
def test_abort_of_a_retracted_request(engine: Engine) -> None:
    rids = [engine.submit(20 + index, 24) for index in range(5)]
    engine.run_until(
        lambda: any(
            rid in view.waiting and engine.results[rid].token_ids
            for view in engine.stages
            for rid in rids
        )
    )
    waiting = [rid for rid in rids if rid in engine.stages[0].waiting]
    for rid in waiting:
        engine.abort(rid)
    engine.drain()
    assert waiting
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@little_kv
def test_cached_prefixes_that_make_room(engine: Engine) -> None:
    """The tree cache is full of old prefixes, and evicts them for new requests."""
    for length in (70, 71, 72, 90):
        engine.generate([length], max_new_tokens=3)
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@one_at_a_time
def test_one_request_at_a_time(engine: Engine) -> None:
    """A chunked prompt then fills the batch on its own (PR 23006)."""
    results = engine.generate([50, 3 * CHUNK, 60, 70], max_new_tokens=4)
    assert_tokens_equal_reference(results)
    assert all(len(slot) <= 1 for view in engine.stages for slot in view.slots)
    assert_kv_balanced(engine.scheduler)


@one_at_a_time
@pytest.mark.pprank(known_bug="aborted-prompt-is-computed-to-its-end")
def test_abort_of_the_only_request(engine: Engine) -> None:
    """The next request takes its place at once."""
    aborted = engine.submit(4 * CHUNK, 50)
    engine.submit(2 * CHUNK, 3)
    engine.run_until(lambda: engine.chunks_done(aborted) >= 2)
    engine.abort(aborted)
    engine.drain()
    assert end_of(engine.results[aborted]) == "abort"
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(known_bug="microbatch-slot-stays-full")
@pytest.mark.sglang(max_running_requests=4, pp_max_micro_batch_size=4, chunked_prefill_size=CHUNK)
def test_microbatch_slot_that_found_no_room(engine: Engine, pprank: Pprank) -> None:
    """The requests of one microbatch held all request slots; after them all microbatches work."""
    for index in range(4):
        engine.submit(9 + index, 6)
    engine.step(1)
    engine.submit(20, 3)
    engine.drain()
    at_once = 0
    for index in range(pprank.num_stages):
        engine.submit(10 + index, 30)
        engine.step(1)
    for _ in range(4 * pprank.num_stages):
        engine.step(1)
        view = engine.stages[0]
        at_once = max(at_once, sum(bool(slot) for slot in view.slots))
    engine.drain()
    assert at_once == pprank.num_stages, f"{at_once} microbatches ran at once"
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)
