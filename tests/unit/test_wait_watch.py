"""A finding must stay the same for a while; a new one restarts the clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.oplog.read.watch import WaitWatch

NOBODY: frozenset[int] = frozenset()


@pytest.fixture
def watch() -> WaitWatch:
    return WaitWatch()


def test_the_same_finding_gets_older(watch: WaitWatch) -> None:
    in_vain = Waits(stuck=frozenset({1}), key=frozenset({(1, 7)}))
    assert watch.update(in_vain, NOBODY, 50).seconds == 0
    found = watch.update(in_vain, NOBODY, 53)
    assert found.seconds == 3
    assert found.wait_in_vain([1])
    assert not found.wait_in_vain([0, 1])
    assert not found.wait_in_vain([])


def test_another_finding_starts_anew(watch: WaitWatch) -> None:
    waits = Waits(deadlock=(0, 1), key=frozenset({(0, 1), (1, 1)}))
    watch.update(waits, NOBODY, 50)
    later = replace(waits, key=frozenset({(0, 2), (1, 2)}))
    assert watch.update(later, NOBODY, 53).seconds == 0


def test_a_deadlock_is_a_standstill(watch: WaitWatch) -> None:
    waits = Waits(deadlock=(0, 1), key=frozenset({(0, 1)}))
    assert watch.update(waits, NOBODY, 50).standstill([0, 1, 2]) == "deadlock"


def test_a_mismatch_is_one_only_if_nobody_still_works(watch: WaitWatch) -> None:
    waits = Waits(mismatch=True, key=frozenset({(0, 1)}))
    assert watch.update(waits, frozenset({0}), 50).standstill([0, 1]) == ""
    assert watch.update(waits, frozenset({0, 1}), 50).standstill([0, 1]) == "mismatch"
