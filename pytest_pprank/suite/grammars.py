"""What tests of requests with grammars share: two grammars, and where SGLang has any."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than

if TYPE_CHECKING:
    from pytest_pprank import Pprank

# token N below 256 reads as that byte, any other one as "N "
NUMBERS = r"(4[0-9]{3} )+"
OTHERS = r"(5[0-9]{3} )+"


def text_of(tokens: list[int]) -> str:
    """Return what output tokens read."""
    return "".join(chr(token) if token < 256 else f"{token} " for token in tokens)


def follows(tokens: list[int], grammar: str) -> bool:
    """Say whether output tokens are a beginning of what a grammar here allows."""
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
    """Skip where SGLang cannot apply a grammar: its kernel for that was for GPUs only."""
    if not pprank.device.startswith("cuda") and is_older_than("0.5.18"):
        pytest.skip("before 0.5.18 SGLang has grammars on a GPU only: --pprank-device cuda")
