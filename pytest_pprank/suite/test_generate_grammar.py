"""Requests whose output must match a grammar, which each stage compiles for itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.grammars import (
    NUMBERS,
    OTHERS,
    needs_grammars,
    refuse_tokens,
    skip_where_there_are_no_grammars,
)

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler

pytestmark = [pytest.mark.sglang(grammar_backend="xgrammar"), *needs_grammars]


@pytest.fixture(autouse=True)
def _grammars_work_here(pprank: Pprank) -> None:
    skip_where_there_are_no_grammars(pprank)


@contextmanager
def late(scheduler: Scheduler, *, here: bool) -> Iterator[Event]:
    """Compile no grammar before the event is set, on ranks with `here`."""
    backend, go = scheduler.grammar_manager.grammar_backend, Event()
    pool = backend.executor
    if here:
        backend.executor = ThreadPoolExecutor(1)
        backend.executor.submit(go.wait)
    try:
        yield go
    finally:
        go.set()
        if here:
            backend.executor.shutdown()
        backend.executor = pool


def follows(tokens: list[int], first: int) -> bool:
    """Return whether all tokens are between `first` and `first` + 999."""
    return all(first <= token < first + 1000 for token in tokens)


def test_output_follows_the_grammar(engine: Engine) -> None:
    bound = [engine.submit(20, 7, regex=NUMBERS), engine.submit(300, 5, regex=OTHERS)]
    free = engine.submit(30, 6)
    engine.drain()
    tokens = [engine.results[rid].token_ids for rid in bound]
    assert [len(each) for each in tokens] == [7, 5]
    assert follows(tokens[0], 4000), tokens[0]
    assert follows(tokens[1], 5000), tokens[1]
    assert_tokens_equal_reference(engine.results[free])
    assert_kv_balanced(engine.scheduler)


def test_stages_wait_for_the_grammar_of_the_first_one(engine: Engine, pprank: Pprank) -> None:
    """The first stage is the last one to have compiled it (PR 30747)."""
    with late(engine.scheduler, here=pprank.is_first_stage) as go:
        bound = engine.submit(20, 4, regex=NUMBERS)
        engine.step(6 * pprank.num_stages)
        assert engine.forwards == []
        free = engine.submit(33, 5)
        engine.run_until(lambda: engine.results[free].token_ids)
        go.set()
        engine.drain()
    assert follows(engine.results[bound].token_ids, 4000)
    assert_tokens_equal_reference(engine.results[free])
    assert_kv_balanced(engine.scheduler)


def test_abort_of_a_request_that_waits_for_its_grammar(engine: Engine, pprank: Pprank) -> None:
    with late(engine.scheduler, here=pprank.is_first_stage) as go:
        aborted = engine.submit(20, 4, regex=OTHERS)
        other = engine.submit(21, 4)
        engine.step(2 * pprank.num_stages)
        engine.abort(aborted)
        go.set()
        engine.drain()
    assert end_of(engine.results[aborted]) == "abort"
    assert_tokens_equal_reference(engine.results[other])
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(sanitize="-logs", known_bug="grammar-refusal-has-no-reason")
@pytest.mark.parametrize("after", [0, 2], ids=["first token", "later token"])
def test_token_that_the_grammar_refuses(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The client hears why its request has ended, and that it is not to blame."""
    refuse_tokens(monkeypatch, OTHERS, after)
    failing, bound = engine.submit(20, 6, regex=OTHERS), engine.submit(21, 4, regex=NUMBERS)
    engine.drain()
    reason = engine.results[failing].finish_reason or {}
    assert reason.get("type") == "abort", reason
    assert "Grammar accept_token failed" in str(reason.get("message")), f"the reason is {reason}"
    assert reason["status_code"] == 500
    assert follows(engine.results[bound].token_ids, 4000)
    assert_kv_balanced(engine.scheduler)
