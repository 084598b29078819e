"""Verdicts under circumstances that a plain pair of ranks does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import contextlib, os, signal, threading
import pytest
from pytest_pprank.errors import PeerError

def test_message_that_nobody_receives(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 0:
        dist.isend(torch.tensor([111.0]), dst=1)
    else:
        raise ValueError("before its recv")

def test_receives_its_own_message(process_group, pprank):
    import torch, torch.distributed as dist
    value = torch.tensor([222.0])
    if pprank.rank == 0:
        dist.send(value, dst=1)
    else:
        dist.recv(value, src=0)
    assert value.item() == 222.0

def test_meeting_left_by_an_exception(pprank):
    if pprank.rank == 0:
        def leave(*_):
            raise RuntimeError("out of the barrier")
        signal.signal(signal.SIGALRM, leave)
        with pytest.raises(RuntimeError):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            pprank.barrier()
        (pprank.workdir / "left").touch()
    else:
        while not (pprank.workdir / "left").exists():
            pass
        with contextlib.suppress(PeerError):  # or it meets what rank 0 has left behind
            pprank.barrier()

def test_meets_only_its_own_meeting(pprank):
    assert pprank.gather(("own", pprank.rank)) == [("own", 0), ("own", 1)]

def test_threads_may_meet_too(pprank):
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(pprank.gather(pprank.rank)))
               for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert seen == [[0, 1]] * 4

@pytest.mark.xfail(raises=ValueError, reason="known")
def test_known_failure_of_one_rank(pprank):
    if pprank.rank == 0:
        raise ValueError
    pprank.barrier()

@pytest.mark.xfail(reason="known")
def test_known_failure_that_strands_its_peer(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 0:
        raise ValueError
    dist.recv(torch.empty(1), src=0)

def test_after_the_stranded(process_group):
    import torch, torch.distributed as dist
    dist.all_reduce(torch.ones(1))

@pytest.mark.timeout(600)
def test_no_alarm_of_pytest_timeout_beside_ours(pprank):
    import signal
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

@pytest.mark.timeout(2)
def test_deadline_of_pytest_timeout(process_group, pprank):
    import torch, torch.distributed as dist
    dist.recv(torch.empty(1), src=1 - pprank.rank)

@pytest.mark.parametrize("x", [1, pytest.param(2, id="two")])
def test_last(pprank, x): pass
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    return module_runner.run("--pp-size=2", "--pprank-device=cpu", "--pprank-grace=2")


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_message_that_nobody_receives[pp2]", "FAILED"),
        ("test_receives_its_own_message[pp2]", "PASSED"),
        ("test_meeting_left_by_an_exception[pp2]", "PASSED"),
        ("test_meets_only_its_own_meeting[pp2]", "PASSED"),
        ("test_threads_may_meet_too[pp2]", "PASSED"),
        ("test_known_failure_of_one_rank[pp2]", "XFAIL"),
        ("test_known_failure_that_strands_its_peer[pp2]", "XFAIL"),
        ("test_after_the_stranded[pp2]", "PASSED"),
        ("test_no_alarm_of_pytest_timeout_beside_ours[pp2]", "PASSED"),
        ("test_deadline_of_pytest_timeout[pp2]", "FAILED"),
        ("test_last[1-pp2]", "PASSED"),
        ("test_last[two-pp2]", "PASSED"),
    ],
)
def test_outcome(run: Run, test: str, outcome: str) -> None:
    assert run.outcome(test) == outcome, run.out


def test_pytest_timeout_decides_how_long(run: Run) -> None:
    block = run.failure("test_deadline_of_pytest_timeout[pp2]")
    assert "hung: no rank got through within 2 s" in block


def test_subtests_are_reported_one_by_one(runner: Runner) -> None:
    if not hasattr(pytest, "Subtests"):
        pytest.skip("subtests came with pytest 9")
    runner.write(
        test_it="""
        import pytest
        def test_it(subtests, pprank):
            with subtests.test("good"):
                pprank.barrier()
            with subtests.test("skipped"):
                pytest.skip("not here")
            with subtests.test("bad"):
                assert pprank.rank == 0
            pprank.barrier()
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu")
    assert "ranks disagree" not in run.out
    assert "SUBFAILED[bad] test_it.py::test_it[pp2] - [rank 1] assert 1 == 0" in run.out
    assert run.out.count("SUBFAILED") <= 2  # when it happens, and in the summary


def test_a_fixture_of_the_same_name_is_not_ours(runner: Runner) -> None:
    runner.write(
        test_it="""
        import pytest

        @pytest.fixture
        def scheduler():
            return "mine"

        @pytest.fixture
        def make_req(scheduler):
            return scheduler

        def test_it(make_req):
            assert make_req == "mine"
        """
    )
    run = runner.run()
    assert run.ret == 0, run.out
    assert run.outcome("test_it") == "PASSED"


def test_an_override_that_builds_on_ours_is_ranked(runner: Runner) -> None:
    runner.write(
        test_it="""
        import pytest

        @pytest.fixture(scope="session")
        def pprank(pprank):
            return pprank.rank

        def test_it(pprank):
            assert pprank in (0, 1)
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu")
    assert run.outcome("test_it[pp2]") == "PASSED"


def test_a_broken_file_does_not_stop_the_others(runner: Runner) -> None:
    runner.write(test_bad="syntax error", test_it="def test_it(pprank): pass")
    flags = ["--pp-size=2", "--pprank-device=cpu", "--continue-on-collection-errors"]
    run = runner.run(*flags)
    assert run.outcome("test_it[pp2]") == "PASSED"
    assert run.counts() == {"passed": 1, "error": 1}


def test_a_mark_on_one_parameter_set_is_refused(runner: Runner) -> None:
    runner.write(
        test_it="""
        import pytest
        @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.pprank(pp=3))])
        def test_it(pprank, x): pass
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "a mark of one parameter set asks for pp=3, and the test is collected" in run.out


def test_modules_beside_the_tests_do_not_hide_the_standard_library(runner: Runner) -> None:
    (runner.folder / "sub").mkdir()  # pytest puts it on sys.path
    (runner.folder / "sub" / "queue.py").write_text("raise ImportError('the wrong one')")
    (runner.folder / "sub" / "test_it.py").write_text("def test_it(pprank): pass")
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "sub")
    assert run.ret == 0, run.out


def test_options_that_only_one_process_may_act_on(runner: Runner) -> None:
    runner.write(
        test_it="""
        import logging
        def test_plain(): logging.error("from the controller")
        def test_it(pprank): logging.error("from a rank")
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "--log-file=out.log", "--setup-show")
    assert run.ret == 0, run.out
    assert "from the controller" in (runner.folder / "out.log").read_text()


def test_a_launcher_that_died_costs_its_test_and_is_replaced(runner: Runner) -> None:
    runner.write(
        test_it="""
        import os, signal
        import pytest
        from pathlib import Path

        def test_kills(pprank):
            if pprank.rank == 0:
                fork_server = os.getppid()
                stat = Path(f"/proc/{fork_server}/stat").read_text()
                os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
            pprank.barrier()
            import time; time.sleep(1000)

        @pytest.mark.parametrize("x", range(5))
        def test_after(pprank, x): pass
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu")
    assert run.counts() == {"failed": 1, "passed": 5}, run.out
    assert runner.processes() == {}


def test_a_report_that_takes_its_time_is_waited_for(runner: Runner) -> None:
    runner.write(
        conftest="""
        import os, time
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            if call.excinfo is not None and os.environ.get("RANK") == "0":
                time.sleep(2)  # twice the grace
            return (yield)
        """,
        test_slow_report="""
        def test_fails(pprank):
            assert pprank.rank == 2, "the reason"

        def test_next(pprank): pass
        """,
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "--pprank-grace=1")
    assert "the reason" in run.failure("test_fails[pp2]")
    assert "ranks diverged" not in run.out
    assert run.counts() == {"failed": 1, "passed": 1}
