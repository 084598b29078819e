"""Embeddings: of prompts, from a server for them, and in the place of a prompt's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of, settle

if TYPE_CHECKING:
    from pytest_pprank import Engine

CHUNK = 64

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)


@pytest.mark.sglang(is_embedding=True)
@pytest.mark.pprank(
    known_bug=("embeddings-end-a-pipeline", "aborted-prompt-is-computed-to-its-end")
)
def test_embeddings(engine: Engine) -> None:
    """A server for embeddings: of prompts in chunks, beside each other, and one that is aborted."""
    engine.generate([20, 2 * CHUNK + 5, 30])
    aborted = engine.submit(4 * CHUNK)
    engine.submit(25)
    engine.run_until(lambda: engine.chunks_done(aborted) >= 2)
    engine.abort(aborted)
    engine.drain()
    assert end_of(engine.results[aborted]) == "abort"
    assert_tokens_equal_reference(r for rid, r in engine.results.items() if rid != aborted)
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(known_bug="input-embeds-are-always-bfloat16")
def test_prompt_of_embeddings(engine: Engine) -> None:
    """The model's own embeddings of the tokens, in the place of the tokens."""
    from pytest_pprank.sglang.model.weights import weights_of

    embeddings = weights_of(engine.scheduler.server_args.model_path)["model.embed_tokens.weight"]
    for length in (20, CHUNK + 9):
        tokens = [*range(1000, 1000 + length)]
        engine.submit(tokens, 5, fields={"input_embeds": embeddings[tokens].tolist()})
        engine.submit(length, 5)
    settle(engine)
