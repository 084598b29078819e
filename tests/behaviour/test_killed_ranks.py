"""A test that has some of its ranks killed goes on with the others, and is reported by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import os, subprocess, sys, time
from pathlib import Path
import pytest
from pytest_pprank import UsageError

def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True

def test_goes_on(pprank, process_group):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10000)"])
    (Path("pids") / str(pprank.rank)).write_text(f"{os.getpid()} {child.pid}")
    pprank.kill([1])
    for pid in map(int, Path("pids/1").read_text().split()):  # it, and its child
        while not gone(pid):
            time.sleep(0.01)
    assert child.poll() is None
    child.kill()
    child.wait()
    assert pprank.rank in (0, 2)
    assert pprank.alive == (0, 2)
    assert pprank.gather(pprank.rank) == [0, 2]
    assert pprank.broadcast(pprank.rank, src=2) == 2
    with pytest.raises(UsageError, match=r"has had rank 1 killed"):
        pprank.broadcast(0, src=1)
    for ranks in ([1], [], [0, 2], [3], 0, "02", ["0"]):
        with pytest.raises(UsageError, match=r"allowed: some, not all, of .0, 2."):
            pprank.kill(ranks)
    pprank.kill([0])
    assert pprank.gather(pprank.rank) == [2]

def test_of_a_fresh_group(pprank):
    assert pprank.gather(os.getpid())[1] != int(Path("pids/1").read_text().split()[0])
    assert pprank.alive == (0, 1, 2)

def test_fails(pprank):
    pprank.kill([0])
    assert pprank.rank != 2, "wrong"

def test_dies(pprank):
    pprank.kill([0])
    if pprank.rank == 1:
        os._exit(3)
    pprank.barrier()

def test_does_not_come(pprank):
    pprank.kill([0])
    if pprank.rank == 1:
        pprank.barrier()

@pytest.fixture(scope="session")
def of_the_session():
    yield
    Path("torn_down").touch()

def test_last(pprank, of_the_session):
    pprank.kill([0, 1])
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    (module_runner.folder / "pids").mkdir()
    module_runner.write(test_it=SOURCE)
    return module_runner.run("-p", "pytest_pprank", "--pp-size", "3", "-W", "error")


@pytest.mark.parametrize("test", ["test_goes_on", "test_of_a_fresh_group", "test_last"])
def test_that_passes(run: Run, test: str) -> None:
    assert run.outcome(f"{test}[pp3]") == "PASSED"


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("test_fails", ["AssertionError: wrong", "failed on rank 2 of 3"]),
        ("test_dies", ["rank died: rank 1 died in call: it exited with code 3"]),
        ("test_does_not_come", ["rank 1 waits in barrier() at", "in vain: rank 2 is through with"]),
    ],
)
def test_verdict_is_that_of_the_others(run: Run, test: str, words: list[str]) -> None:
    block = run.failure(f"{test}[pp3]")
    for word in words:
        assert word in block, block


def test_it_is_no_fault(run: Run) -> None:
    assert run.counts() == {"failed": 3, "passed": 3}


@pytest.mark.usefixtures("run")
def test_nothing_is_left_behind(module_runner: Runner) -> None:
    assert module_runner.processes() == {}
    assert len([*(module_runner.folder / "pids").iterdir()]) == 3
    assert (module_runner.folder / "torn_down").exists()
