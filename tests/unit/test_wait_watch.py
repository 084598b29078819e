"""A finding must stay the same for a while; a new one starts the clock again."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_pprank.oplog.read.watch as wait_watch
from pytest_pprank.oplog.file import Ledger
from pytest_pprank.oplog.read.wait_graph import Waits


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Waits]:
    """What the wait-for graph says: a list, of which the last is what it says now."""
    said = [Waits()]
    monkeypatch.setattr(wait_watch, "explain_waits", lambda *_: said[-1])
    return said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_same_finding_gets_older(
    waits: list[Waits], clock: list[float], tmp_path: Path
) -> None:
    watch = wait_watch.WaitWatch(tmp_path, 2)
    waits.append(Waits(stuck=frozenset({1}), key=frozenset({(1, 7)})))
    assert watch.look({}, {}).seconds == 0
    clock[0] += 3
    found = watch.look({}, {})
    assert found.seconds == 3
    assert found.wait_in_vain([1])
    assert not found.wait_in_vain([0, 1])
    assert not found.wait_in_vain([])


def test_another_finding_starts_anew(
    waits: list[Waits], clock: list[float], tmp_path: Path
) -> None:
    watch = wait_watch.WaitWatch(tmp_path, 2)
    waits.append(Waits(deadlock=(0, 1), key=frozenset({(0, 1), (1, 1)})))
    watch.look({}, {})
    clock[0] += 3
    waits.append(replace(waits[-1], key=frozenset({(0, 2), (1, 2)})))
    assert watch.look({}, {}).seconds == 0


def test_a_deadlock_is_a_standstill(waits: list[Waits], tmp_path: Path) -> None:
    waits.append(Waits(deadlock=(0, 1), key=frozenset({(0, 1)})))
    assert wait_watch.WaitWatch(tmp_path, 2).look({}, {}).standstill([0, 1, 2]) == "deadlock"


def test_a_mismatch_is_one_only_if_nobody_still_works(waits: list[Waits], tmp_path: Path) -> None:
    waits.append(Waits(mismatch=True, key=frozenset({(0, 1)})))
    found = wait_watch.WaitWatch(tmp_path, 2).look({}, {})
    assert all(isinstance(ledger, Ledger) for ledger in found.ledgers.values())
    assert found.standstill([0, 1]) == ""  # neither ledger says that its rank waits
