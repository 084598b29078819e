"""Orders of messages that need a buffer (suite.unbuffered)."""

from __future__ import annotations

import pytest

from pytest_pprank.suite.unbuffered import RECV, SEND, blocked

WORDS = {"s": SEND, "r": RECV}


def stuck(*orders: str) -> list[int]:
    return sorted(blocked([[WORDS[letter] for letter in order] for order in orders]))


@pytest.mark.parametrize("orders", [("sr", "rs"), ("ssrr", "rrss"), ("srs", "rsr"), ("", "")])
def test_orders_that_fit(orders: tuple[str, ...]) -> None:
    assert not stuck(*orders)


@pytest.mark.parametrize("orders", [("sr", "sr"), ("rs", "rs"), ("srsr", "rssr")])
def test_both_do_the_same(orders: tuple[str, ...]) -> None:
    assert stuck(*orders) == [0, 1]


def test_rings() -> None:
    assert not stuck("sr", "rs", "sr", "rs")
    assert not stuck("sr", "rs", "sr")
    assert stuck("sr", "sr", "sr") == [0, 1, 2]


def test_message_that_nobody_receives() -> None:
    assert blocked([[SEND, SEND], [RECV]]) == {0: f"{SEND}, as its message number 2 of 2"}
