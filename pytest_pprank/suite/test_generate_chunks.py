"""Prompts that are computed in several chunks, alone and beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

CHUNK = 64
PAGE = 16

chunked = pytest.mark.sglang(chunked_prefill_size=CHUNK)
mixed = pytest.mark.sglang(chunked_prefill_size=CHUNK, page_size=PAGE, enable_mixed_chunk=True)


@chunked
def test_chunked_prompt(engine: Engine) -> None:
    (result,) = engine.generate([5 * CHUNK - 1])
    assert len(result.extends) == 5
    assert_tokens_equal_reference([result])
    assert_kv_balanced(engine.scheduler)


@chunked
def test_chunked_prompts_beside_others(engine: Engine) -> None:
    lengths = [3 * CHUNK, 3 * CHUNK + 1, 5, 2 * CHUNK - 1, CHUNK, 9, 4 * CHUNK + 7]
    assert_tokens_equal_reference(engine.generate(lengths))
    assert_kv_balanced(engine.scheduler)


@chunked
def test_chunks_while_others_are_decoded(engine: Engine) -> None:
    """Some requests end while the prompt is in the middle, so a slot becomes empty in between."""
    for max_new_tokens in (3, 20, 5):
        engine.submit(20, max_new_tokens)
    engine.run_until(lambda: all(result.token_ids for result in engine.results.values()))
    engine.submit(4 * CHUNK + 1, 5)
    engine.step(2)
    engine.submit(2 * CHUNK + 3, 1)
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@pytest.fixture
def skipped_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set SGLang's switch for not sending outputs of chunks that sample nothing (PR 26148)."""
    monkeypatch.setenv("SGLANG_PP_SKIP_PURE_CHUNKED_OUTPUT_COMM", "1")


@chunked
@pytest.mark.pprank(sanitize="-streams")  # the next test checks that
@pytest.mark.usefixtures("skipped_output")
def test_chunks_whose_output_is_not_sent(engine: Engine) -> None:
    assert_tokens_equal_reference(engine.generate([5 * CHUNK + 3, 6, 2 * CHUNK]))
    assert_kv_balanced(engine.scheduler)


@chunked
@pytest.mark.pprank(known_bug="forward-of-skipped-chunk-not-waited-for")
@pytest.mark.usefixtures("skipped_output")
def test_last_stage_waits_for_chunks_whose_output_is_not_sent(
    engine: Engine, pprank: Pprank
) -> None:
    if pprank.device != "sim" or pprank.num_stages == 1:
        pytest.skip("several stages, on device sim: no other sees what is in order")
    engine.generate([5 * CHUNK + 3, 6])


@chunked
def test_chunks_of_a_prompt_whose_beginning_is_cached(engine: Engine) -> None:
    prompt = [*range(3000, 3000 + 3 * CHUNK + 10)]
    engine.generate([prompt], max_new_tokens=2)
    longer = [*prompt, *range(5000, 5000 + 2 * CHUNK + 5)]
    result, _ = engine.generate([longer, 2 * CHUNK])
    assert (result.cached_tokens, result.extends[0][0]) == (len(prompt), len(prompt))
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@chunked
def test_logprobs_of_chunked_prompts(engine: Engine) -> None:
    engine.submit(2 * CHUNK, 4)  # a request without logprobs, in the same batches
    results = engine.generate([3 * CHUNK + 5, 20, CHUNK], prompt_logprobs=True, logprobs=True)
    for result in results:
        assert len(result.prompt_logprobs) == len(result.prompt) - 1
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@mixed
def test_prompts_around_a_page(engine: Engine) -> None:
    lengths = [PAGE - 1, PAGE, PAGE + 1, CHUNK - 1, CHUNK + PAGE, 2 * CHUNK + PAGE + 1]
    assert_tokens_equal_reference(engine.generate(lengths, max_new_tokens=PAGE + 2))
    assert_kv_balanced(engine.scheduler)


@mixed
def test_pages_that_are_cached(engine: Engine) -> None:
    """Whole pages are reused from the cache, parts of pages are not."""
    prompt = [*range(1000, 1000 + 3 * CHUNK + 5)]
    engine.generate([prompt])
    results = engine.generate([[*prompt, 7, 8], [*prompt[: 5 * PAGE + 3], 9]])
    assert [result.cached_tokens for result in results] == [3 * CHUNK, 5 * PAGE]
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


@mixed
def test_chunks_in_one_batch_with_decoded_requests(engine: Engine) -> None:
    for max_new_tokens in (20, 4, 12):
        engine.submit(20 + max_new_tokens, max_new_tokens)
    engine.run_until(lambda: all(result.token_ids for result in engine.results.values()))
    for length in (4 * CHUNK + 1, 30, CHUNK):
        engine.submit(length, 5)
        engine.step(1)
    engine.drain()
    modes = {forward.mode for forward in engine.forwards}
    assert "mixed" in modes, f"modes of the forwards: {modes}"
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(known_bug="profiler-fails-on-first-stage")
@pytest.mark.sglang(enable_dynamic_chunking=True)
def test_chunks_of_predicted_sizes(engine: Engine, pprank: Pprank) -> None:
    if pprank.num_stages < 2:
        pytest.skip("SGLang sizes chunks dynamically on two stages or more")
    assert_tokens_equal_reference(engine.generate([1500, 40, 700]))
    assert_kv_balanced(engine.scheduler)
