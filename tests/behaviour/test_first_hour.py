"""Mistakes and misunderstandings of new users: one clear sentence for each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from test_usage import usage_error

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    import pdb
    import pytest
    import torch
    import torch.distributed as dist

    def test_breakpoint(pprank):
        if pprank.rank == 1:
            breakpoint()

    def test_set_trace(pprank):
        pdb.set_trace()

    def test_gather_on_one_rank(pprank):
        if pprank.rank == 0:
            pprank.gather(1)

    def test_another_dtype(pprank, process_group):
        if pprank.rank == 0:
            dist.send(torch.zeros(4), 1)
        else:
            dist.recv(torch.zeros(2, dtype=torch.float64), 0)

    def test_another_size(pprank, process_group):
        if pprank.rank == 0:
            dist.send(torch.zeros(4), 1)
        else:
            dist.recv(torch.zeros(8), 0)

    def test_left_in_an_unready_state(pprank):
        pprank.spoil("a test said so")
        assert not pprank.rank
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=TESTS)
    return module_runner.run("--pp-size=2", "--pprank-device=cpu", "--pdb", "test_it.py")


def test_pdb_without_a_terminal_is_said_to_have_no_effect(run: Run) -> None:
    said = "pprank: --pdb cannot stop in the 6 ranked test(s): standard input is not a terminal"
    assert run.out.count(said) == 1


@pytest.mark.parametrize("test", ["test_breakpoint", "test_set_trace"])
def test_breakpoint_says_why_not(run: Run, test: str) -> None:
    block = run.failure(f"{test}[pp2]")
    assert "breakpoint() on rank" in block
    assert "standard input is not a terminal" in block
    assert "BdbQuit" not in run.out


def test_missed_meeting_shows_the_test_and_not_the_harness(run: Run) -> None:
    block = run.failure("test_gather_on_one_rank[pp2]")
    assert "pprank.gather(1)" in block
    assert "link.py" not in block
    assert "handle.py" not in block


def test_what_differs_between_send_and_recv(run: Run) -> None:
    differ = "do not fit together (the dtype and the size differ):"
    assert differ in run.failure("test_another_dtype[pp2]")
    assert "do not fit together (the size differs):" in run.failure("test_another_size[pp2]")


def test_no_warning_of_a_replaced_group_after_a_failure(run: Run) -> None:
    """The failure itself already says so."""
    block = run.failure("test_left_in_an_unready_state[pp2]")
    assert "worker group replaced after this test: ranks 0,1: a test said so" in block
    assert "PytestWarning: pprank: worker group replaced" not in run.out


STOPPED = """
    import os
    import signal

    def test_peer_is_stopped(pprank, process_group):
        if pprank.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        pprank.barrier()

    def test_next(pprank):
        pprank.barrier()
"""


def test_a_stopped_rank_is_told_after_the_grace(runner: Runner) -> None:
    """It is not reported only after --pprank-timeout, although no rank has finished its phase."""
    runner.write(test_it=STOPPED)
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "--pprank-grace=1", "test_it.py")
    block = run.failure("test_peer_is_stopped[pp2]")
    assert "hung: rank 1 stopped (by a signal such as SIGSTOP) for " in block
    assert "waiting in barrier()" in block or "barrier() at test_it.py:" in block
    assert run.outcome("test_next[pp2]") == "PASSED"


def test_too_many_stages(runner: Runner) -> None:
    error = usage_error(runner, "--pp-size=1000")
    assert "--pp-size: '1000'" in error
    assert "allowed: 1 to 128" in error


@pytest.mark.parametrize("given", ["x", "skew", ":7"])
def test_perturb_without_a_seed(runner: Runner, given: str) -> None:
    error = usage_error(runner, "--pp-size=2", f"--pprank-perturb={given}")
    assert f"--pprank-perturb: {given!r} is not SEED or SEED:NAMES" in error


def test_two_that_use_one_scheduler(runner: Runner) -> None:
    source = "def test_it(engine, schedule_batch): pass"
    runner.write(test_two=source)
    run = runner.run("--pp-size=2", "test_two.py")
    assert run.ret == pytest.ExitCode.USAGE_ERROR, run.out
    assert re.search(r"the fixtures 'engine' and .*'schedule_batch' in one test", run.out)


def test_what_is_wrong_with_all_tests_is_said_once(runner: Runner) -> None:
    body = "import pytest\n" + "\n".join(
        f"@pytest.mark.pprank(device='tpu')\ndef test_{n}(pprank): pass" for n in range(5)
    )
    runner.write(test_many=body)
    run = runner.run("--pp-size=2", "test_many.py")
    assert run.ret == pytest.ExitCode.USAGE_ERROR, run.out
    assert len(re.findall(r"device", run.out.split("ERROR: ")[1].split("\n\n")[0])) <= 2
    assert "and 4 other tests: " in run.out


def test_a_test_has_one_name_wherever_it_runs(
    runner: Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A node id depends on rootdir and arguments, and ranks have others: files keep them apart."""
    runner.write(
        test_name="""
        import os

        def test_it(pprank, request):
            assert request.node.nodeid == "test_name.py::test_it[pp2]"
            assert os.environ["PYTEST_CURRENT_TEST"] == "test_name.py::test_it[pp2] (call)"
        """
    )
    elsewhere = tmp_path_factory.mktemp("root")
    run = runner.run("--pp-size=2", "--pprank-device=cpu", f"--rootdir={elsewhere}", ".")
    assert run.outcome("test_it[pp2]") == "PASSED", run.out
