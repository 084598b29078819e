"""What is reported of ranks whose worlds differ after a test, and what is not."""

from __future__ import annotations

from dataclasses import replace

from pytest_pprank.controller.worlds import differences, why_spoiled
from pytest_pprank.protocol.messages import TestDone
from pytest_pprank.protocol.world import World

PAIR: dict[str, tuple[str, tuple[int, ...], int]] = {"1:ab": ("group 1", (0, 1), 3)}
EVEN = World(default="gloo", created=2, groups=PAIR)


def test_even_worlds() -> None:
    assert differences({0: EVEN, 1: EVEN}) == []
    assert differences({0: World(), 1: World()}) == []
    # roles have worlds of their own
    assert differences({0: replace(EVEN, of="prefill"), 1: World(of="decode")}) == []
    # a rank that is in no group, and one about which nothing is known
    assert differences({0: EVEN, 1: EVEN, 2: replace(EVEN, groups={})}) == []
    assert differences({0: EVEN, 1: replace(EVEN, groups=None)}) == []


def test_what_differs() -> None:
    (default,) = differences({0: World(), 1: EVEN})
    assert default.endswith("not the same on all ranks: none on rank 0, gloo on rank 1")
    (created,) = differences({0: EVEN, 1: replace(EVEN, created=4, groups={}), 2: EVEN})
    assert "on some ranks than on ranks 0,2 (2 more on rank 1)" in created
    (destroyed,) = differences({0: EVEN, 1: replace(EVEN, groups={})})
    assert destroyed.startswith("group 1 of ranks 0,1 was destroyed on rank 1 alone")
    (counts,) = differences({0: EVEN, 1: replace(EVEN, groups={"1:ab": ("group 1", (0, 1), 5)})})
    assert counts.endswith("as many collectives on all of them: 3 on rank 0, 5 on rank 1")
    (variable,) = differences({0: EVEN, 1: replace(EVEN, environment=("A",))})
    assert variable.startswith("environment variable A was left changed on rank 1 alone")
    assert differences({rank: replace(EVEN, environment=("A",)) for rank in (0, 1)}) == []


def test_what_a_group_is_replaced_for_without_a_word() -> None:
    uneven = {0: TestDone(world=World(default="gloo")), 1: TestDone(world=World())}
    assert why_spoiled(uneven, list)
    assert why_spoiled({**uneven, 1: TestDone(unsettled=True)}, list) == ""
    assert why_spoiled({**uneven, 1: TestDone(world=World(caught=True))}, list) == ""
    assert why_spoiled(uneven, None) == "", "a rank has not come to the end"
    spoiled = {0: TestDone("why"), 1: TestDone("why")}
    assert why_spoiled(spoiled, list) == "ranks 0,1: why"


def test_what_is_on_its_way_comes_first() -> None:
    left = {0: TestDone(unfinished=True, world=World(default="gloo")), 1: TestDone()}
    assert why_spoiled(left, lambda: list("abcde")) == "a; b; c; and 2 more"
    assert "default process group" in why_spoiled(left, list)
