"""Other kinds of models: tied embeddings, a mixture of experts, latent attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.releases import latent_attention_runs

if TYPE_CHECKING:
    from pytest_pprank import Engine

CHUNK = 64
PAGE = 16


def check(engine: Engine) -> None:
    """Check chunked, cached and mixed prompts, with an aborted one among them."""
    prompt = [*range(1000, 1000 + CHUNK + 2 * PAGE)]
    engine.generate([prompt, 5, 3 * CHUNK + 1], max_new_tokens=6)
    long = engine.submit(4 * CHUNK, 5)
    engine.submit([*prompt, 7, 8, 9], 9, logprobs=True)
    engine.run_until(lambda: engine.chunks_done(long) >= 2)
    if not is_older_than("0.5.14"):  # a bug of 0.5.13, which test_generate_aborts shows
        engine.abort(long)
        engine.drain()
        assert end_of(engine.results[long]) == "abort"
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


@pytest.mark.sglang(model_path="tiny:qwen3", chunked_prefill_size=CHUNK)
def test_qwen_with_tied_embeddings(engine: Engine) -> None:
    check(engine)


@pytest.mark.sglang(model_path="tiny:qwen3-moe", chunked_prefill_size=CHUNK)
def test_mixture_of_experts(engine: Engine) -> None:
    check(engine)


@latent_attention_runs
@pytest.mark.sglang(model_path="tiny:deepseek-v3", chunked_prefill_size=CHUNK, page_size=PAGE)
def test_latent_attention(engine: Engine) -> None:
    check(engine)
