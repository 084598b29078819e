"""How long a test may take, on a simulated clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pytest_pprank.controller.process_state import is_traced
from pytest_pprank.controller.run.deadlines import Deadlines


@pytest.fixture
def deadlines() -> Deadlines:
    """Return the deadlines of a test that begins at second 100."""
    return Deadlines(timeout=60, grace=5, now=100)


def test_the_timeout_counts_from_the_start(deadlines: Deadlines) -> None:
    assert deadlines.left(120, failed=False) == 40
    assert deadlines.since_start(120) == 20


def test_after_a_failure_the_grace(deadlines: Deadlines) -> None:
    deadlines.mark_arrivals(True, 120)
    assert deadlines.left(122, failed=True) == 3
    assert deadlines.since_first_arrival(122) == 2


def test_after_a_pass_as_long_again_as_it_took(deadlines: Deadlines) -> None:
    deadlines.mark_arrivals(True, 120)
    assert deadlines.left(122, failed=False) == 18


def test_in_setup_ranks_wait_longer_for_each_other(deadlines: Deadlines) -> None:
    deadlines.mark_arrivals(True, 102)
    assert deadlines.left(103, failed=False, slow=True) == 29
    assert deadlines.left(103, failed=True) == 4


def test_but_never_longer_than_the_timeout(deadlines: Deadlines) -> None:
    deadlines.mark_arrivals(True, 150)
    assert deadlines.left(150, failed=False) == 10


def test_the_next_phase_begins_anew(deadlines: Deadlines) -> None:
    deadlines.mark_arrivals(True, 120)
    deadlines.mark_arrivals(False, 120)
    deadlines.mark_arrivals(True, 121)
    assert deadlines.left(121, failed=False) == 5
    assert deadlines.since_first_arrival(121) == 0


def test_a_pause_does_not_count(deadlines: Deadlines) -> None:
    deadlines.pause(0, "pdb", 110)
    deadlines.pause(1, "pdb", 110)
    assert deadlines.left(1110, failed=False) == 50
    deadlines.resume(0, 1110)
    assert deadlines.paused_by == {1: "pdb"}
    deadlines.resume(1, 2110)
    assert deadlines.left(2111, failed=False) == 49
    assert not deadlines.paused_by


def test_resuming_what_was_not_paused_changes_nothing(deadlines: Deadlines) -> None:
    deadlines.resume(0, 100)
    assert deadlines.left(101, failed=False) == 59


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
