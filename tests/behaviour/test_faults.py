"""An error on one rank fails one test and is reported; the next test passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import os, signal, sys, time
import pytest

BLOCK = "the peer that waits for ever"

def test_killed(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.recv(torch.empty(1), src=1)

def test_after_killed(process_group, pprank):
    import torch, torch.distributed as dist
    dist.all_reduce(torch.ones(1))

def test_exits(pprank):
    if pprank.rank == 0:
        os._exit(7)
    pprank.barrier()

def test_after_exit(pprank):
    assert len(pprank.gather(0)) == 2

def test_exits_with_0(pprank):
    if pprank.rank == 0:
        os._exit(0)
    pprank.barrier()

def test_exits_beside_its_child(pprank):
    if pprank.rank == 0:
        if os.fork() == 0:
            time.sleep(10000)
        os._exit(81)

def test_leaves_a_message(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 0:
        dist.isend(torch.tensor([111.0]), dst=1)

def test_after_the_message(process_group, pprank):
    import torch, torch.distributed as dist
    value = torch.tensor([222.0])
    if pprank.rank == 0:
        dist.send(value, dst=1)
    else:
        dist.recv(value.zero_(), src=0)
    assert value.item() == 222.0

def test_segfault(pprank):
    if pprank.rank == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    pprank.barrier()

@pytest.mark.pprank(timeout=600)
def test_one_fails_the_other_blocks(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 0:
        raise ValueError("the first cause")
    dist.recv(torch.empty(1), src=0)

def test_after_blocked(process_group, pprank):
    import torch, torch.distributed as dist
    dist.all_reduce(torch.ones(1))

def test_one_finishes_the_other_blocks(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 1:
        dist.recv(torch.empty(1), src=0)

@pytest.mark.pprank(timeout=600)
def test_all_block(process_group, pprank):
    import torch, torch.distributed as dist
    dist.recv(torch.empty(1), src=1 - pprank.rank)

@pytest.fixture
def blocks_on_one(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank == 0:
        dist.recv(torch.empty(1), src=1)

def test_setup_blocks_on_one(blocks_on_one): pass

def test_children_die_too(pprank):
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    if pprank.rank == 0:
        os._exit(1)
    pprank.barrier()

def test_ends_the_session(pprank):
    if pprank.rank == 1:
        pytest.exit("out of here")

def test_closes_everything(pprank):
    if pprank.rank == 1:
        os.closerange(3, 1000)
    pprank.barrier()

def test_unpicklable(pprank):
    class Local(Exception):
        def __str__(self):
            return "readable all the same"
        def __reduce__(self):
            raise TypeError("no")
    raise Local

def test_last(process_group, pprank):
    import torch, torch.distributed as dist
    dist.all_reduce(torch.ones(1))
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    flags = ["--pp-size=2", "--pprank-device=cpu", "--pprank-grace=2", "--pprank-timeout=120"]
    return module_runner.run(*flags)


@pytest.mark.parametrize(
    "test",
    [
        "test_after_killed",
        "test_after_exit",
        "test_after_the_message",
        "test_after_blocked",
        "test_last",
    ],
)
def test_the_next_test_passes(run: Run, test: str) -> None:
    assert run.outcome(f"{test}[pp2]") == "PASSED"


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("test_killed", ["rank died: rank 1 died in call: killed by SIGKILL"]),
        ("test_exits", ["rank died: rank 0 died in call: it exited with code 7"]),
        ("test_exits_with_0", ["rank died: rank 0 died in call: it exited with code 0"]),
        ("test_exits_beside_its_child", ["rank 0 died in", ": it exited with code 81"]),
        ("test_segfault", ["rank 0 died in call: killed by SIGSEGV"]),
        (
            "test_one_fails_the_other_blocks",
            [
                "ValueError: the first cause",
                "failed on rank 0 of 2",
                "rank 1 is still inside call",
                "rank 0 failed in call",
                "Stacks of rank 1",
                "in test_one_fails_the_other_blocks",
            ],
        ),
        (
            "test_one_finishes_the_other_blocks",
            [
                "ranks diverged: rank 1 is still inside call",
                "after rank 0 passed in call",
                "in test_one_finishes_the_other_blocks",
            ],
        ),
        (
            "test_all_block",
            [
                "hung: deadlock: ranks 0,1 are still inside call, and for",
                "deadlock: rank 0 waits in recv from rank 1 (test_it.py:",
                "rank 1 waits in recv from rank 0 (test_it.py:",
                "Stacks of ranks 0,1",
            ],
        ),
        (
            "test_setup_blocks_on_one",
            ["ranks diverged: rank 0 is still inside setup", "in blocks_on_one"],
        ),
        ("test_children_die_too", ["rank 0 died in call: it exited with code 1"]),
        (
            "test_ends_the_session",
            ["rank 1 died in call: its pytest session ended early", "out of here"],
        ),
        ("test_closes_everything", ["rank 1 died in call"]),
        ("test_unpicklable", ["readable all the same", "failed on ranks 0,1 of 2"]),
    ],
)
def test_verdict(run: Run, test: str, words: list[str]) -> None:
    block = run.failure(f"{test}[pp2]")
    for word in words:
        assert word in block, block


def test_every_fault_cost_one_test(run: Run) -> None:
    # a message that nobody received fails its test through the sanitizer p2p
    assert run.counts() == {"failed": 13, "passed": 5, "error": 1}


def test_a_message_on_its_way_is_told(run: Run) -> None:
    assert (
        "worker group replaced after this test: rank 0 left send to rank 1 (test_it.py:" in run.out
    )


@pytest.mark.usefixtures("run")
def test_nothing_is_left_behind(module_runner: Runner) -> None:
    assert module_runner.processes() == {}


def test_a_group_that_cannot_start_is_an_error_of_its_tests_and_then_of_the_run(
    runner: Runner,
) -> None:
    runner.write(
        conftest="""
        import os
        def pytest_configure():
            if "RANK" in os.environ and os.environ["RANK"] == "1":
                raise RuntimeError("not on this rank")
        """,
        test_it="""
        import pytest
        @pytest.mark.parametrize("x", range(9))
        def test_it(pprank, x): pass
        """,
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu")
    assert "rank 1 could not start" in run.out
    assert "not on this rank" in run.out
    assert "failed to start 3 times in a row" in run.out
    assert run.out.count("::test_it[") < 9
    assert run.ret != 0
    assert runner.processes() == {}


def test_a_file_that_one_rank_cannot_collect(runner: Runner) -> None:
    runner.write(
        test_it="""
        import os
        if os.environ.get("RANK") == "1":
            raise ImportError("no such luck")
        def test_it(pprank): pass
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu")
    block = run.failure("test_it[pp2]")
    assert "collection failed on a rank: rank 1" in block
    assert "no such luck" in block
    assert run.counts() == {"error": 1}
