"""Under pytest-xdist every worker has its own worker groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

pytest.importorskip("xdist")

SOURCE = """
import os, signal
import pytest

def test_plain_before():
    assert "RANK" not in os.environ

class TestClass:
    def test_group_of_its_own(self, process_group, pprank):
        import torch, torch.distributed as dist
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == pprank.world_size == 2

    def test_same_worker_on_all_ranks(self, pprank, worker_id, testrun_uid):
        ((worker, _),) = set(pprank.gather((worker_id, testrun_uid)))
        assert worker == os.environ["PYTEST_XDIST_WORKER"]

    def test_fails_on_one(self, pprank):
        assert pprank.rank == 0

def test_dies(pprank):
    if pprank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    pprank.barrier()

def test_after(pprank):
    pprank.barrier()

def test_plain_after():
    assert "RANK" not in os.environ
"""
OPTIONS = ("-n2", "--pp-size=2", "--pprank-device=cpu")


@pytest.mark.parametrize("dist", ["loadscope", "worksteal"])
def test_distribution(runner: Runner, dist: str) -> None:
    runner.write(test_one=SOURCE, test_two="def test_alone(pprank): pprank.barrier()")
    run = runner.run(*OPTIONS, f"--dist={dist}")
    assert run.counts() == {"failed": 2, "passed": 6}
    assert "failed on rank 1 of 2" in run.failure("TestClass.test_fails_on_one[pp2]")
    assert "rank died: rank 1 died in call: killed by SIGKILL" in run.failure("test_dies[pp2]")
    runner.wait_for(lambda: not runner.processes(), "all processes are gone")


def test_stop_at_the_first_failure(runner: Runner) -> None:
    runner.write(test_it="import pytest\n" + "".join(FAILING.format(n=n) for n in range(12)))
    run = runner.run(*OPTIONS, "-x")
    assert run.ret == 2
    counts = run.counts()
    assert 1 <= counts["failed"] <= 4  # each worker may be one test further
    assert "errors" not in counts
    runner.wait_for(lambda: not runner.processes(), "all processes are gone")


FAILING = """
def test_{n}(pprank):
    pprank.barrier()
    assert {n} < 0
"""


def test_worker_that_crashes(runner: Runner) -> None:
    """Its ranks end with it, and its successor continues."""
    runner.write(
        test_it="""
        import os
        def test_ranked(pprank):
            pprank.barrier()
        def test_crashes():
            os._exit(1)
        def test_ranked_too(pprank):
            pprank.barrier()
        """
    )
    run = runner.run(*OPTIONS)
    assert run.counts() == {"failed": 1, "passed": 2}
    assert "crashed while running 'test_it.py::test_crashes'" in run.out
    runner.wait_for(lambda: not runner.processes(), "all processes are gone")


def test_usage_error(runner: Runner) -> None:
    """A worker prints nothing itself; without a word from it the run is an internal error."""
    mark = "@pytest.mark.pprank(stages=2)"
    runner.write(test_wrong=f"import pytest\n{mark}\ndef test_it(pprank): pass")
    run = runner.run(*OPTIONS)
    assert run.ret == pytest.ExitCode.USAGE_ERROR, run.out
    assert run.out.count("has no keyword 'stages'") == 1
    assert "INTERNALERROR" not in run.out
