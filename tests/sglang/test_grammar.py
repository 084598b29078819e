"""Grammars over the tiny models' made-up vocabulary: what is refused, and how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank import UsageError
from pytest_pprank.sglang.model import grammar


def scheduler_without_backend() -> Any:
    return SimpleNamespace(grammar_manager=SimpleNamespace(grammar_backend=None))


def test_other_backends_are_refused() -> None:
    with pytest.raises(UsageError, match=r"grammar_backend='outlines'.*allowed: 'xgrammar'"):
        grammar.start_grammars(scheduler_without_backend(), "outlines")


def test_missing_xgrammar_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="xgrammar is not installed; run: pip install xgrammar"):
        grammar.start_grammars(scheduler_without_backend(), "xgrammar")


def test_none_stays_none() -> None:
    scheduler = scheduler_without_backend()
    grammar.start_grammars(scheduler, "none")
    assert scheduler.grammar_manager.grammar_backend is None
