"""Requests through the real event loops of all stages: tokens of the reference, nothing kept."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

CHUNK = 64


def test_one_request(engine: Any) -> None:
    assert_tokens_equal_reference(engine.generate([17]))
    assert_kv_balanced(engine.scheduler)


def test_requests_of_many_lengths(engine: Any) -> None:
    assert_tokens_equal_reference(engine.generate([1, 2, 31, 100, 255, 256, 257, 3]))
    assert_kv_balanced(engine.scheduler)


def test_requests_that_end_at_different_times(engine: Any) -> None:
    for max_new_tokens in (1, 2, 5, 9, 14):
        engine.submit(20 + max_new_tokens, max_new_tokens, stream=False)
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_requests_that_come_one_after_another(engine: Any) -> None:
    """Each finds the pipeline busy with those before it, in another state."""
    for length in (70, 5, 300, 12, 33, 150):
        engine.submit(length, 6)
        engine.step(3)
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_more_requests_than_may_run(engine: Any) -> None:
    results = engine.generate([10 + 7 * index for index in range(32)], max_new_tokens=4)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_prefix_that_is_cached(engine: Any) -> None:
    prompt = [*range(1000, 1200)]
    engine.generate([prompt])
    results = engine.generate([[*prompt, 7, 8, 9], [*prompt[:120], 5], prompt])
    assert [result.cached_tokens for result in results] == [200, 120, 199]
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_stop_token(engine: Any) -> None:
    (whole,) = engine.generate([60])
    stop = whole.token_ids[3]
    results = engine.generate([whole.prompt, 20], stop_token_ids=[stop])
    assert results[0].finish_reason == {"type": "stop", "matched": stop}
    assert results[0].token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(chunked_prefill_size=CHUNK)
def test_chunked_prompt(engine: Any) -> None:
    (result,) = engine.generate([5 * CHUNK - 1])
    assert len(result.extends) == 5
    assert_tokens_equal_reference([result])
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(chunked_prefill_size=CHUNK)
def test_chunked_prompts_beside_others(engine: Any) -> None:
    lengths = [3 * CHUNK, 3 * CHUNK + 1, 5, 2 * CHUNK - 1, CHUNK, 9, 4 * CHUNK + 7]
    assert_tokens_equal_reference(engine.generate(lengths))
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(chunked_prefill_size=CHUNK)
def test_chunks_whose_output_is_not_sent(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this switch of SGLang's a chunk that samples nothing sends nothing back (PR 26148)."""
    monkeypatch.setenv("SGLANG_PP_SKIP_PURE_CHUNKED_OUTPUT_COMM", "1")
    assert_tokens_equal_reference(engine.generate([5 * CHUNK + 3, 6, 2 * CHUNK]))
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(chunked_prefill_size=CHUNK)
def test_abort_in_the_middle_of_a_prompt(engine: Any) -> None:
    aborted, other = engine.submit(8 * CHUNK), engine.submit(30)
    engine.run_until(lambda: engine.chunks_done(aborted) >= 2)
    engine.abort(aborted)
    engine.drain()
    assert engine.results[aborted].finish_reason["type"] == "abort"
    assert_tokens_equal_reference(engine.results[other])
    assert_kv_balanced(engine.scheduler)


def test_abort_of_a_running_request(engine: Any) -> None:
    aborted, _ = engine.submit(40, 200), engine.submit(41, 12)
    engine.run_until(lambda: len(engine.results[aborted].token_ids) >= 3)
    engine.abort(aborted)
    engine.drain()
    assert engine.results[aborted].finish_reason["type"] == "abort"
    assert len(engine.results[aborted].token_ids) < 200
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def test_abort_in_every_slot(engine: Any, pprank: Any) -> None:
    """The request is in another microbatch slot than the one whose turn it is (PR 29405)."""
    for turn in range(pprank.num_stages):
        rid = engine.submit(20, 100)
        engine.run_until(lambda: len(engine.results[rid].token_ids) >= 2)  # noqa: B023
        engine.step(1 + turn)
        engine.abort(rid)
        engine.drain()
        assert engine.results[rid].finish_reason["type"] == "abort"
        assert_tokens_equal_reference(engine.results[rid])
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(enable_dynamic_chunking=True)
def test_chunks_of_predicted_sizes(engine: Any, pprank: Any) -> None:
    if pprank.num_stages < 2:
        pytest.skip("SGLang sizes chunks dynamically on two stages or more")
    assert_tokens_equal_reference(engine.generate([1500, 40, 700]))
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(max_total_tokens=128, schedule_conservativeness=0.05)
def test_requests_that_are_retracted(engine: Any) -> None:
    """More tokens than there is KV for: some requests give theirs back, and are computed again."""
    results = engine.generate([20 + index for index in range(5)], max_new_tokens=14)
    assert any(result.retractions for result in results)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


def test_abort_of_a_request_that_has_not_begun(engine: Any) -> None:
    aborted, other = engine.submit(40), engine.submit(41)
    engine.abort(aborted)
    engine.drain()
    assert engine.results[aborted].finish_reason["type"] == "abort"
    assert_tokens_equal_reference(engine.results[other])
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(max_running_requests=1, chunked_prefill_size=CHUNK)
def test_one_request_at_a_time(engine: Any) -> None:
    """A chunked prompt then fills all there is to fill (PR 23006)."""
    results = engine.generate([50, 3 * CHUNK, 60, 70], max_new_tokens=4)
    assert_tokens_equal_reference(results)
    assert all(len(slot) <= 1 for view in engine.stages for slot in view.slots)
    assert_kv_balanced(engine.scheduler)


def test_logprobs_are_those_of_the_tokens(engine: Any) -> None:
    results = engine.generate([12, 90], logprobs=True)
    assert_tokens_equal_reference(results)
    for result in results:
        assert len(result.logprobs) == len(result.token_ids)
        assert all(value < 0 for value in result.logprobs)
    assert_kv_balanced(engine.scheduler)
