"""Requests through the event loops of all stages: reference tokens, and all memory is freed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank


def test_one_request(engine: Engine) -> None:
    """All microbatch slots but one are empty."""
    assert_tokens_equal_reference(engine.generate([17]))
    assert_kv_balanced(engine.scheduler)


def test_requests_of_many_lengths(engine: Engine) -> None:
    assert_tokens_equal_reference(engine.generate([1, 2, 31, 100, 255, 256, 257, 3]))
    assert_kv_balanced(engine.scheduler)


def test_requests_that_end_at_different_times(engine: Engine) -> None:
    """Batches become empty, in some microbatch slots sooner than in others."""
    for max_new_tokens in (1, 2, 5, 1, 9, 14, 1):
        engine.submit(20 + max_new_tokens, max_new_tokens, stream=False)
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_requests_that_come_one_after_another(engine: Engine) -> None:
    """Each request finds the pipeline in another state, busy with earlier requests."""
    for length in (70, 5, 300, 12, 33, 150):
        engine.submit(length, 6)
        engine.step(3)
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_requests_after_a_pause(engine: Engine) -> None:
    """The loops run idle in between; remains of the last batch must not matter."""
    for length in (9, 270):
        engine.generate([length, 14])
        engine.step(5)
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_more_requests_than_may_run(engine: Engine) -> None:
    results = engine.generate([10 + 5 * index for index in range(32)], max_new_tokens=4)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_prefix_that_is_cached(engine: Engine) -> None:
    prompt = [*range(1000, 1200)]
    engine.generate([prompt])
    results = engine.generate([[*prompt, 7, 8, 9], [*prompt[:120], 5], prompt])
    assert [result.cached_tokens for result in results] == [200, 120, 199]
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_prefix_of_a_request_that_still_runs(engine: Engine) -> None:
    prompt = [*range(2000, 2100)]
    first = engine.submit(prompt, 12)
    engine.run_until(lambda: len(engine.results[first].token_ids) >= 3)
    later = engine.submit([*prompt, 3, 4], 5)
    engine.drain()
    assert engine.results[later].cached_tokens == 100
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_stop_token(engine: Engine) -> None:
    """One request of a batch stops early, the other one continues."""
    (whole,) = engine.generate([60])
    stop = whole.token_ids[3]
    results = engine.generate([whole.prompt, 20], stop_token_ids=[stop])
    assert results[0].finish_reason == {"type": "stop", "matched": stop}
    assert results[0].token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_first_token_is_the_stop_token(engine: Engine) -> None:
    """The request ends before any decode forward."""
    (whole,) = engine.generate([60], max_new_tokens=1)
    results = engine.generate([whole.prompt, 20], stop_token_ids=[whole.token_ids[0]])
    assert end_of(results[0]) == "stop"
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_logprobs_are_those_of_the_tokens(engine: Engine) -> None:
    engine.submit(33, 7)  # a request without logprobs, in the same batches
    results = engine.generate([12, 90], logprobs=True)
    assert_tokens_equal_reference(engine.results.values())
    for result in results:
        assert len(result.logprobs) == len(result.token_ids)
        assert all(value < 0 for value in result.logprobs)
    assert_kv_balanced(engine.scheduler)


def test_stages_of_different_speed(engine: Engine, pprank: Pprank) -> None:
    """The first or last stage is slower than the others, by a delay before each of its forwards."""
    import time

    def pause(delay: float, _: object) -> None:
        time.sleep(delay)

    for slow in (0, pprank.num_stages - 1):
        slows_down = pprank.stage == slow
        engine.on_forward(partial(pause, 0.004 * slows_down))
        engine.generate([30, 280, 3], max_new_tokens=5)
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(enable_priority_scheduling=True, max_running_requests=2)
def test_requests_that_push_others_aside(engine: Engine, pprank: Pprank) -> None:
    """Requests of higher priority run first, even at the cost of a running one (for that SGLang
    requires a priority higher by ten).
    """
    low = [engine.submit(40 + i, 6, priority=0) for i in range(pprank.num_stages + 2)]
    engine.run_until(lambda: len(engine.results[low[0]].token_ids) >= 2)
    begun = {rid for forward in engine.forwards for rid in forward.rids}
    middle, high = (engine.submit(30 + more, 4, priority=more) for more in (5, 20))
    engine.drain()
    order = list(dict.fromkeys(rid for forward in engine.forwards for rid in forward.rids))
    assert order[len(begun) :][:2] == [high, middle], (begun, order)
    assert sum(engine.results[rid].retractions for rid in low) == 1
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(pp=1)
@pytest.mark.sglang(
    enable_priority_scheduling=True,
    max_running_requests=2,
    max_total_tokens=256,
    chunked_prefill_size=256,
)
def test_request_that_needs_what_it_pushes_aside(engine: Engine) -> None:
    """There is room for it after that, or just not: nobody is lost."""
    for length in range(224, 229):
        low = [engine.submit(20 + index, 8, priority=0) for index in range(2)]
        engine.run_until(lambda: all(engine.results[rid].token_ids for rid in low))  # noqa: B023
        engine.submit(length, 2, priority=20)
        engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)
