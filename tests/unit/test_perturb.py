"""What is drawn from a seed, which perturbations run, and what a failure says about them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.faults import (
    PERTURBATIONS,
    Allowed,
    Schedule,
    parse_mark,
    parse_option,
    schedule_for,
)
from pytest_pprank.faults.base import BUDGET_S, Disturbance, stretched
from pytest_pprank.faults.dice import Dice
from pytest_pprank.planning import Plan
from pytest_pprank.report.perturbed import perturbed_lines
from pytest_pprank.topology import Topology

ALL = tuple(row.name for row in PERTURBATIONS)
DEFAULT = tuple(row.name for row in PERTURBATIONS if not row.opt_in)


def drawn(dice: Dice, events: str = "aababbbaab") -> list[float]:
    return [dice.draw(event) for event in events]


def test_same_seed_same_schedule() -> None:
    assert drawn(Dice(7, "test_it", "skew", 0)) == drawn(Dice(7, "test_it", "skew", 0))


@pytest.mark.parametrize(
    "other", [(8, "test_it", "skew", 0), (7, "test_that", "skew", 0), (7, "test_it", "skew", 1)]
)
def test_other_seed_other_schedule(other: tuple[int, str, str, int]) -> None:
    mine, others = drawn(Dice(7, "test_it", "skew", 0)), drawn(Dice(*other))
    assert not set(mine) & set(others)


def test_events_of_one_name_do_not_shift_those_of_another() -> None:
    """Which of two threads comes first depends on timing."""
    assert sorted(drawn(Dice(7), "aabb")) == sorted(drawn(Dice(7), "baab"))
    assert drawn(Dice(7), "aabb")[2:] == drawn(Dice(7), "bb")


def test_schedule_is_the_same_in_all_versions() -> None:
    """A seed that a user has written down must keep its meaning."""
    drawn = Dice(7, "test_it", "skew", 0).draw("iteration")
    assert drawn == pytest.approx(0.6360986262941953, abs=1e-15)


def test_chance_and_amount() -> None:
    dice = Dice(1)
    amounts = [dice.amount("it", 0.25) for _ in range(4000)]
    hits = [amount for amount in amounts if amount is not None]
    assert 850 < len(hits) < 1150
    assert 0 <= min(hits) < 0.01
    assert 0.99 < max(hits) < 1


def disturbance(seed: int = 3, rank: int = 0, test: str = "test_it") -> Disturbance:
    return Disturbance("skew", seed, test, SimpleNamespace(rank=rank))  # type: ignore[arg-type]


def test_ranks_are_held_back_by_different_amounts_and_draw_alike_together() -> None:
    one, two = disturbance(), disturbance(rank=1)
    delays = [[each.delay("it", 0.5, 0.001) for _ in range(20)] for each in (one, two)]
    assert delays[0] != delays[1]
    assert drawn(one.shared) == drawn(two.shared)


def test_one_in_sixteen_is_long() -> None:
    amounts = [number / 1600 for number in range(1600)]
    long = [amount for amount in amounts if stretched(amount) != amount]
    assert (len(long), long[0]) == (100, 0.9375)
    assert 24 < stretched(amounts[-1]) < 25
    held = [disturbance(seed).delay("it", 1.0, 0.001) for seed in range(400)]
    assert 10 < sum(seconds > 0.001 for seconds in held) < 45


def test_no_test_becomes_slow() -> None:
    slow = disturbance()
    for _ in range(1000):
        slow.delay("it", 1.0, 0.05)
    assert BUDGET_S - 0.05 < slow.held_s <= BUDGET_S
    assert str(slow).startswith(f"skew {slow.did} times, 2")


def test_what_was_done_is_told() -> None:
    quiet = disturbance()
    assert str(quiet) == ""
    quiet.strike()
    assert str(quiet) == "skew once"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("7", Schedule(7, ALL)),
        ("7:polls, skew", Schedule(7, ("skew", "polls"))),
        ("7:-skew", Schedule(7, ALL[1:])),
    ],
)
def test_option(text: str, expected: Schedule | None) -> None:
    assert parse_option(text, "x") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("skew", "x: 'skew' is not SEED or SEED:NAMES, such as 7 or 7:skew,polls"),
        ("7:none", "is not SEED or SEED:NAMES"),
        ("7:skw", r"x: there is no perturbation 'skw' \(did you mean 'skew'\?\)"),
        ("-1", "SEED is a whole number from 0 up, and goes before the names"),
    ],
)
def test_wrong_option(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_option(text, "x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", Allowed(())),
        ("-skew", Allowed(DEFAULT[1:])),
        ("+aborts", Allowed(ALL)),
        (["skew"], Allowed(("skew",))),
        (5, Allowed(DEFAULT, 5)),
        ("5:skew", Allowed(("skew",), 5)),
    ],
)
def test_marker(value: str | list[str] | int, expected: Allowed) -> None:
    assert parse_mark(value, "x") == expected


@pytest.mark.parametrize("value", [True, 2.5, "sometimes"])
def test_wrong_marker(value: bool | float | str) -> None:
    with pytest.raises(UsageError, match=r"x: .*'all', 'none' or names: skew"):
        parse_mark(value, "x")


@pytest.mark.parametrize(
    ("option", "mark", "expected"),
    [
        (None, None, None),
        ("7", None, Schedule(7, DEFAULT)),
        ("7:aborts", None, None),
        ("7:aborts,skew", "+aborts", Schedule(7, ("skew", "aborts"))),
        ("7", "none", None),
        (None, "-skew", None),
        (None, "5:skew", Schedule(5, ("skew",))),
        ("7", "5:skew", Schedule(7, ("skew",))),
    ],
)
def test_what_a_test_runs_under(
    option: str | None, mark: str | None, expected: Schedule | None
) -> None:
    given = parse_option(option, "x") if option else None
    allowed = parse_mark(mark, "x") if mark else None
    assert schedule_for(given, allowed, "cpu", sglang=True) == expected


def test_those_for_sglang_need_it_and_some_a_device() -> None:
    given = parse_option("7", "x")
    assert schedule_for(given, None, "cpu", sglang=False) == Schedule(7, ("messages", "late_sends"))
    assert schedule_for(given, None, "cuda", sglang=False) == Schedule(7, ("messages",))


def test_what_a_failure_says() -> None:
    topology = Topology(2, "cpu", {}, 1)
    plan = Plan(topology, fresh=False, timeout=1, perturb=Schedule(7, ("skew", "polls")))
    lines = list(perturbed_lines(plan, {0: "skew once", 1: ""}))
    assert lines == [
        "perturbed: seed 7 (skew, polls)",
        "  rank 0: skew once",
        "  rank 1: nothing came of it",
    ]
    assert not list(perturbed_lines(Plan(topology, fresh=False, timeout=1), {}))


def test_whole_schedule_is_repeated_by_its_seed() -> None:
    left_of_all = schedule_for(parse_option("7", "W"), None, "sim", sglang=True)
    assert left_of_all == Schedule(7, DEFAULT)
    assert str(left_of_all) == str(parse_option("7", "W")) == "7"
