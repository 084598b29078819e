"""The message if the stages of a pipeline did not run the same batches."""

from __future__ import annotations

import pytest

from pytest_pprank.sglang.driver.views import first_difference
from pytest_pprank.sglang.events.types import Forward

A, B = Forward(0, "extend", ("a",), ((0, 4),)), Forward(2, "decode", ("a",))
LATER = Forward(3, "decode", ("a",))


def difference(ran: list[list[Forward]], since: int = 0) -> list[str]:
    return first_difference({f"stage {n}": forwards for n, forwards in enumerate(ran)}, since)


@pytest.mark.parametrize(
    "ran",
    [[[A, B], [A, B], [A, B]], [[A, B], [A, B], [A]], [[A, B], [A], []], [[], []], [[A]]],
)
def test_later_stages_may_be_behind(ran: list[list[Forward]]) -> None:
    assert difference(ran) == []


@pytest.mark.parametrize(
    ("ran", "words"),
    [
        ([[A, B], [A, LATER]], ["0: iteration 2, decode of a", "1: iteration 3, decode of a"]),
        ([[A], [A, B]], ["0: none", "1: iteration 2, decode of a"]),
        ([[B], [A]], ["0: iteration 2, decode of a", "1: iteration 0, extend of a (tokens 0-4)"]),
        ([[A], [], [A]], ["0: iteration 0, extend of a (tokens 0-4)", "1: none"]),
    ],
)
def test_differences(ran: list[list[Forward]], words: list[str]) -> None:
    assert difference(ran)[: len(words)] == [f"stage {word}" for word in words]


def test_what_was_compared_before_is_not_again() -> None:
    assert difference([[A, B], [LATER, B]], since=1) == []
