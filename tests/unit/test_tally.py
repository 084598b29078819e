"""The counts of worker groups at the end of a run."""

from __future__ import annotations

import pytest

from pytest_pprank.controller.tally import GroupTally
from pytest_pprank.errors import GroupError
from pytest_pprank.planning import Plan
from pytest_pprank.topology import Topology

TWO, THREE = Topology(2, "cpu"), Topology(3, "cpu")


def start(tally: GroupTally, topology: Topology = TWO, *, fresh: bool = False) -> None:
    with tally.starting(Plan(topology, fresh=fresh, timeout=1)):
        pass


def counts(tally: GroupTally) -> str:
    return tally.summary().partition(";")[0]


def test_one_group() -> None:
    tally = GroupTally()
    start(tally)
    assert tally.summary() == (
        "1 worker group: 1 started anew for its topology; 0.0 s of starts, 0.0 s of tests"
    )


def test_reasons() -> None:
    tally = GroupTally()
    start(tally)
    start(tally, fresh=True)
    start(tally, fresh=True)
    start(tally)
    tally.spoiled(TWO, red=True)
    start(tally)
    tally.spoiled(TWO, red=False)
    start(tally)
    tally.given_back(TWO)
    start(tally)
    assert counts(tally) == (
        "7 worker groups: 2 started anew for their topology, 2 for tests that asked for one, "
        "1 replaced after a failure, 1 replaced after a test that passed, "
        "1 started again after other runs"
    )


def test_no_replacement_for_another_topology_nor_twice_for_one_failure() -> None:
    tally = GroupTally()
    start(tally)
    tally.spoiled(TWO, red=True)
    start(tally, THREE)
    start(tally, TWO)
    assert counts(tally) == "3 worker groups: 3 started anew for their topology"


def test_group_that_could_not_start() -> None:
    tally = GroupTally()
    with pytest.raises(GroupError), tally.starting(Plan(TWO, fresh=True, timeout=1)):
        raise GroupError("no")
    assert counts(tally) == "1 worker group: 1 that could not start"


def test_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.5, 2.0, 4.5, 5.0, 6.0])
    monkeypatch.setattr("pytest_pprank.controller.tally.time.monotonic", lambda: next(times))
    tally = GroupTally()
    start(tally)
    for _ in range(2):
        with tally.testing():
            pass
    assert tally.summary().endswith("; 1.5 s of starts, 3.5 s of tests")
