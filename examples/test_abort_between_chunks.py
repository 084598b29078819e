"""A prompt in chunks, aborted between two of them, while another request goes on.

pytest -p pytest_pprank --pp-size 2 examples/test_abort_between_chunks.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine


def test_abort_between_two_chunks(engine: Engine) -> None:
    aborted, other = engine.submit(700), engine.submit(20, max_new_tokens=4)
    engine.run_until(lambda: engine.chunks_done(aborted) >= 1)
    assert engine.is_chunking(aborted)  # of 256 tokens: two are still to come
    engine.abort(aborted)
    engine.drain()
    reason = engine.results[aborted].finish_reason
    assert reason
    assert reason["type"] == "abort"
    assert_tokens_equal_reference(engine.results[other])
    assert_kv_balanced(engine.scheduler)  # on every stage
