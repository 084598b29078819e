"""Ranks that hang fail one test, and the report says who waits for whom, or where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import os, re, signal, time
import pytest
import torch, torch.distributed as dist

def test_missing_send(process_group, pprank):
    if pprank.rank == 2:
        dist.recv(torch.empty(4, 8), src=0)

def test_after_missing_send(process_group):
    dist.all_reduce(torch.ones(1))

@pytest.mark.pprank(timeout=600)
def test_circle_of_three(process_group, pprank):
    dist.recv(torch.empty(1), src=(pprank.rank + 1) % 3)

@pytest.mark.pprank(timeout=600)
def test_collective_against_recv(process_group, pprank):
    if pprank.rank == 1:
        dist.recv(torch.empty(1), src=0)
    dist.all_reduce(torch.ones(1))

def test_after_the_deadlocks(process_group):
    dist.all_reduce(torch.ones(1))

def endless():
    while True:
        pass

@pytest.mark.pprank(timeout=3)
def test_python_loop_on_all(pprank):
    endless()

def test_python_loop_on_one(pprank):
    if pprank.rank == 1:
        endless()

@pytest.mark.pprank(timeout=3)
def test_c_code_that_keeps_the_gil(pprank):
    if pprank.rank == 0:
        re.match(r"(a|a)*$", "a" * 60 + "b")
    pprank.barrier()

def test_stopped(process_group, pprank):
    if pprank.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)

@pytest.fixture
def stuck_in_teardown(pprank):
    yield
    if pprank.rank == 0:
        endless()

def test_hangs_in_teardown(stuck_in_teardown):
    pass

@pytest.fixture(scope="session")
def fails_on_two(pprank):
    if pprank.rank == 2:
        raise LookupError("no data for this rank")

def test_session_fixture(fails_on_two):
    pass

def test_session_fixture_again(fails_on_two):
    pass

def test_a_pause_stops_the_clock(pprank):
    if pprank.rank == 0:
        with pprank.deadlines_paused("somebody looks at it"):
            much_more_than_the_grace = time.monotonic() + 4
            while time.monotonic() < much_more_than_the_grace:
                time.sleep(0.01)

def test_last(process_group):
    dist.all_reduce(torch.ones(1))

@pytest.fixture
def longer_than_the_grace_on_one(pprank):
    if pprank.rank == 0:
        time.sleep(2)

def test_setups_are_not_equal(longer_than_the_grace_on_one): pass
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    flags = ["--pp-size=3", "--pprank-device=cpu", "--pprank-grace=1", "--pprank-timeout=120"]
    return module_runner.run(*flags)


@pytest.mark.parametrize(
    "test",
    [
        "test_after_missing_send",
        "test_after_the_deadlocks",
        "test_a_pause_stops_the_clock",
        "test_last",
        "test_setups_are_not_equal",
    ],
)
def test_the_next_test_passes(run: Run, test: str) -> None:
    assert run.outcome(f"{test}[pp3]") == "PASSED"


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            "test_missing_send",
            [
                "ranks diverged: rank 2 is still inside call",
                "after ranks 0,1 passed in call",
                "rank 2 waits in recv from rank 0 (test_it.py:8 in test_missing_send, "
                "float32[4,8], 128 B, default group); rank 0 passed in call without sending",
                "Stacks of rank 2",
                "Operations of rank",
            ],
        ),
        (
            "test_circle_of_three",
            [
                "hung: deadlock: ranks 0,1,2 are still inside call, and for",
                "deadlock: rank 0 waits in recv from rank 1",
                "rank 1 waits in recv from rank 2",
                "rank 2 waits in recv from rank 0",
            ],
        ),
        (
            "test_collective_against_recv",
            ["hung: deadlock: ", "all_reduce #1", "recv from rank 0"],
        ),
        (
            "test_python_loop_on_all",
            ["hung: no rank got through within 3 s: ranks 0,1,2 are still inside", "in endless"],
        ),
        (
            "test_python_loop_on_one",
            ["ranks diverged: rank 1 is still inside call", "Stacks of rank 1", "in endless"],
        ),
        (
            "test_c_code_that_keeps_the_gil",
            [
                "hung: no rank got through within 3 s",
                "rank 0 is still inside call; ranks 1,2 are still inside call (waiting in barrier",
                "in test_c_code_that_keeps_the_gil",
            ],
        ),
        ("test_stopped", ["rank 1 is still inside call", "stopped (by a signal such as SIGSTOP)"]),
        (
            "test_hangs_in_teardown",
            ["ranks diverged: rank 0 is still inside teardown", "in endless"],
        ),
        ("test_session_fixture", ["no data for this rank", "setup failed on rank 2 of 3"]),
        ("test_session_fixture_again", ["no data for this rank", "setup failed on rank 2 of 3"]),
    ],
)
def test_verdict(run: Run, test: str, words: list[str]) -> None:
    block = run.failure(f"{test}[pp3]")
    for word in words:
        assert word in block, block


def test_every_hang_cost_one_test(run: Run) -> None:
    assert run.counts() == {"failed": 7, "passed": 6, "errors": 3}


@pytest.mark.usefixtures("run")
def test_nothing_is_left_behind(module_runner: Runner) -> None:
    assert module_runner.processes() == {}
