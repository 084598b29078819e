"""Moments of requests at which something else happens, and the check of all requests afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Engine

CHUNK = 64
"""The ``chunked_prefill_size`` that the moments are made for."""


def check(engine: Engine, *aborted: str) -> None:
    """Check that no request was lost, all tokens are right, and all memory was freed."""
    engine.drain()
    for rid, result in engine.results.items():
        assert end_of(result) == ("abort" if rid in aborted else "length"), rid
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def end(engine: Engine) -> None:
    engine.generate([30], 2)


def idle(engine: Engine) -> None:
    engine.generate([30], 2)
    engine.step(4)


def amid_a_prompt(engine: Engine) -> None:
    engine.submit(20, 9)
    rid = engine.submit(4 * CHUNK, 3)
    engine.run_until(lambda: engine.chunks_done(rid) >= 2)


def amid_decoding(engine: Engine) -> None:
    rids = [engine.submit(20 + 7 * index, 9) for index in range(3)]
    engine.run_until(lambda: all(engine.results[rid].token_ids for rid in rids))


def amid_waiting(engine: Engine) -> None:
    """There are 8 request slots."""
    rids = [engine.submit(10 + index, 4) for index in range(11)]
    engine.run_until(lambda: engine.results[rids[0]].token_ids)


MOMENTS: Mapping[str, Callable[[Engine], None]] = {
    "idle": idle,
    "just ended": end,
    "amid a prompt": amid_a_prompt,
    "amid decoding": amid_decoding,
    "amid waiting": amid_waiting,
}
IDLE = ("idle", "just ended")
"""Moments at which the cache can be flushed."""
