"""Helpers for tests of requests with grammars: two grammars, and skips where SGLang has none."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than

if TYPE_CHECKING:
    from pytest_pprank import Pprank

# the text of token N is that byte if N < 256, else "N "
NUMBERS = r"(4[0-9]{3} )+"
OTHERS = r"(5[0-9]{3} )+"


def text_of(tokens: list[int]) -> str:
    """Return the text of output tokens."""
    return "".join(chr(token) if token < 256 else f"{token} " for token in tokens)


def follows(tokens: list[int], grammar: str) -> bool:
    """Return whether output tokens match one of the grammars above."""
    return re.fullmatch(grammar, text_of(tokens)) is not None


needs_grammars = (
    pytest.mark.skipif(
        find_spec("xgrammar") is None,
        reason="xgrammar is not installed: pip install xgrammar, or python -m pytest_pprank setup",
    ),
    pytest.mark.skipif(
        is_older_than("0.5.16"),
        reason="before SGLang 0.5.16 stages do not agree on requests with grammars (PR 30747)",
    ),
)


def skip_where_there_are_no_grammars(pprank: Pprank) -> None:
    """Skip if SGLang cannot apply grammars: before 0.5.18 their kernel exists for GPUs only."""
    if not pprank.device.startswith("cuda") and is_older_than("0.5.18"):
        pytest.skip("before 0.5.18 SGLang has grammars on a GPU only: --pprank-device cuda")


def refuse_tokens(monkeypatch: pytest.MonkeyPatch, grammar: str, after: int = 0) -> None:
    """Make this grammar refuse a token on this rank, as if it did not allow it.

    `after`: how many tokens it takes before that.
    """
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar

    accept = XGrammarGrammar.accept_token
    taken: list[int] = []

    def refuse(self: XGrammarGrammar, token: int) -> object:
        if self.key_string == grammar:
            if len(taken) >= after:
                raise ValueError("refused by the test")
            taken.append(token)
        return accept(self, token)

    monkeypatch.setattr(XGrammarGrammar, "accept_token", refuse)
