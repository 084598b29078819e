"""pytest-rerunfailures decides what is run again; such a test runs again on all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

pytest.importorskip("pytest_rerunfailures")

SOURCE = """
import os
from pathlib import Path
import pytest

class Own(Exception):
    pass

def first_time(pprank, name):
    flag = Path(__file__).with_name(f"{name}-{pprank.rank}")
    seen = flag.exists()
    flag.touch()
    pprank.barrier()
    return not seen

def test_fails_once_on_one_rank(pprank):
    first = first_time(pprank, "once")
    assert pprank.gather(first) == [first, first]  # all ranks run it again
    if pprank.rank == 1 and first:
        raise ValueError("once")
    pprank.barrier()

@pytest.mark.flaky(reruns=1)
def test_rank_dies_once(pprank):
    if first_time(pprank, "dies") and pprank.rank == 1:
        os._exit(3)
    pprank.barrier()

@pytest.mark.flaky(reruns=2)
def test_always_fails(pprank):
    assert pprank.rank == 0

@pytest.mark.flaky(reruns=2, only_rerun="ValueError")
def test_another_error(pprank):
    assert pprank.rank == 0

@pytest.mark.flaky(reruns=2, only_rerun=Own)
def test_own_error(pprank):
    if first_time(pprank, "own") and pprank.rank == 0:
        raise Own("anything")

@pytest.mark.flaky(reruns=2, condition=False)
def test_not_now(pprank):
    assert pprank.rank == 0

@pytest.fixture
def broken_once(pprank):
    if first_time(pprank, "setup"):
        raise ValueError("in setup")

@pytest.mark.flaky(reruns=1)
def test_setup_fails_once(broken_once, pprank):
    pass

def test_good(pprank):
    pass
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    return module_runner.run("--pp-size=2", "--pprank-device=cpu", "--reruns=1", "-rR")


@pytest.mark.parametrize(
    ("test", "outcomes"),
    [
        ("test_fails_once_on_one_rank[pp2]", ["RERUN", "PASSED"]),
        ("test_rank_dies_once[pp2]", ["RERUN", "PASSED"]),
        ("test_always_fails[pp2]", ["RERUN", "RERUN", "FAILED"]),
        ("test_another_error[pp2]", ["FAILED"]),
        ("test_own_error[pp2]", ["RERUN", "PASSED"]),
        ("test_not_now[pp2]", ["FAILED"]),
        ("test_setup_fails_once[pp2]", ["RERUN", "PASSED"]),
        ("test_good[pp2]", ["PASSED"]),
    ],
)
def test_outcomes(run: Run, test: str, outcomes: list[str]) -> None:
    lines = [line.split()[1] for line in run.out.splitlines() if f"::{test} " in f"{line} "]
    assert [word for word in lines if word.isupper()] == outcomes


def test_counts(run: Run) -> None:
    assert run.counts() == {"failed": 3, "passed": 5, "rerun": 6}
    assert run.ret == 1


def test_last_attempt_is_explained(run: Run) -> None:
    assert "failed on rank 1 of 2" in run.failure("test_always_fails[pp2]")


def test_strict_config_and_markers(runner: Runner) -> None:
    """Its ini options and its marker are known on ranks, although it does nothing there."""
    (runner.folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers --strict-config\nreruns = 1\nfilterwarnings = error\n"
    )
    runner.write(
        test_it="""
        import pytest
        @pytest.mark.flaky(reruns=1)
        def test_it(pprank):
            pass
        """
    )
    # pytest-asyncio warns at configuration if its own ini option is missing
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "-pno:asyncio")
    assert run.counts() == {"passed": 1}


def test_with_xdist(runner: Runner) -> None:
    pytest.importorskip("xdist")
    runner.write(test_it=SOURCE)
    options = ("--pp-size=2", "--pprank-device=cpu", "-n2", "--reruns=1", "-k", "once or always")
    run = runner.run(*options)
    assert run.counts() == {"failed": 1, "passed": 3, "rerun": 5}
