"""How long a test may take, with a clock of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pytest_pprank.controller.deadlines import Deadlines, is_traced


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Deadlines:
    return Deadlines(timeout=60, grace=5, clock=clock)


def test_the_timeout_counts_from_the_start(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 20
    assert deadlines.left(failed=False) == 40
    assert deadlines.since_start == 20


def test_after_a_failure_the_grace(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 20
    deadlines.mark_arrivals(True)
    clock.now += 2
    assert deadlines.left(failed=True) == 3
    assert deadlines.since_first_arrival == 2


def test_after_a_pass_as_long_again_as_it_took(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 20
    deadlines.mark_arrivals(True)
    clock.now += 2
    assert deadlines.left(failed=False) == 18


def test_in_setup_ranks_wait_longer_for_each_other(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 2
    deadlines.mark_arrivals(True)
    clock.now += 1
    assert deadlines.left(failed=False, setup=True) == 29
    assert deadlines.left(failed=True, setup=True) == 4


def test_but_never_longer_than_the_timeout(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 50
    deadlines.mark_arrivals(True)
    assert deadlines.left(failed=False) == 10


def test_the_next_phase_begins_anew(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 20
    deadlines.mark_arrivals(True)
    deadlines.mark_arrivals(False)
    clock.now += 1
    deadlines.mark_arrivals(True)
    assert deadlines.left(failed=False) == 5
    assert deadlines.since_first_arrival == 0


def test_a_pause_does_not_count(deadlines: Deadlines, clock: Clock) -> None:
    clock.now += 10
    deadlines.pause(0, "pdb")
    deadlines.pause(1, "pdb")
    clock.now += 1000
    assert deadlines.left(failed=False) == 50
    deadlines.resume(0)
    clock.now += 1000
    assert deadlines.paused_by == {1: "pdb"}
    deadlines.resume(1)
    clock.now += 1
    assert deadlines.left(failed=False) == 49
    assert not deadlines.paused_by


def test_resuming_what_was_not_paused_changes_nothing(deadlines: Deadlines, clock: Clock) -> None:
    deadlines.resume(0)
    clock.now += 1
    assert deadlines.left(failed=False) == 59


_TRACE_ME = (
    "import ctypes, signal, os; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19)"
)


def test_a_traced_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", _TRACE_ME]) as process:
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            assert is_traced(process.pid)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert not is_traced(os.getpid())
    assert not is_traced(process.pid)
