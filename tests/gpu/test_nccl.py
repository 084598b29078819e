"""What goes wrong on NCCL, and its verdict: within the grace, with the rank named."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import os, signal
import pytest

def ones(pprank, count=4):
    import torch
    return torch.ones(count, device=pprank.device)

@pytest.fixture
def dist(process_group, pprank):
    import torch, torch.distributed as dist
    if pprank.rank < 2:
        dist.all_reduce(ones(pprank))
    torch.cuda.synchronize()
    yield dist
    torch.cuda.synchronize()

@pytest.fixture
def sync():
    import torch
    return torch.cuda.synchronize

def test_does_not_send(dist, sync, pprank):
    if pprank.rank == 1:
        dist.recv(ones(pprank), 0)
        sync()

def test_after_does_not_send(dist): pass

def test_wrong_order(dist, sync, pprank):
    value = ones(pprank)
    for name in ("all_reduce", "broadcast")[:: 1 if pprank.rank else -1]:
        dist.all_reduce(value) if name == "all_reduce" else dist.broadcast(value, 0)
    sync()

def test_after_wrong_order(dist): pass

def test_wrong_size(dist, sync, pprank):
    dist.all_reduce(ones(pprank, 4 if pprank.rank else 1 << 20))
    sync()

def test_after_wrong_size(dist): pass

def test_message_too_large(dist, sync, pprank):
    if pprank.rank == 0:
        dist.send(ones(pprank, 1 << 20), 1)
    else:
        dist.recv(ones(pprank, 16), 0)
    sync()

def test_after_message_too_large(dist): pass

def test_dies_in_a_collective(dist, sync, pprank):
    import torch
    if pprank.rank == 1:
        torch.cuda._sleep(10**9)
        dist.all_reduce(ones(pprank))
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(ones(pprank))
    dist.all_reduce(ones(pprank))
    sync()

def test_after_dies_in_a_collective(dist): pass

@pytest.mark.pprank(timeout=6)
def test_kernel_without_end(dist, sync, pprank):
    import torch
    if pprank.rank == 1:
        torch.cuda._sleep(10**11)
    dist.all_reduce(ones(pprank))
    sync()

def test_after_kernel_without_end(dist): pass

def test_aborts(dist, sync, pprank):
    if pprank.rank == 1:
        dist.distributed_c10d._abort_process_group()
        return
    dist.all_reduce(ones(pprank))
    sync()

def test_after_aborts(dist): pass
"""

VERDICTS = {
    "test_does_not_send": (
        "ranks diverged: rank 1 is still inside call",
        "rank 1 waits in recv from rank 0",
        "rank 0 passed in call without sending",
    ),
    "test_wrong_order": ("mismatch in default group: rank 0 broadcast #2", "rank 1 all_reduce #2"),
    "test_wrong_size": ("hung: mismatch", "float32[1048576]", "float32[4]"),
    "test_message_too_large": ("mismatch: rank 0 send to rank 1", "4194304 B", "64 B"),
    "test_dies_in_a_collective": ("rank died: rank 1 died in call: killed by SIGKILL",),
    "test_kernel_without_end": (
        "hung: no rank got through within 6 s",
        "all_reduce #2 of default group",
    ),
    "test_aborts": ("rank 0 waits in all_reduce #2", "rank 1 passed in call without coming to it"),
}


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    module_runner.deadline = 240
    # what is not found within the grace would take 60 s
    return module_runner.run(
        "-ppytest_pprank", "--pp-size=2", "--pprank-device=cuda", "--pprank-timeout=60"
    )


@pytest.mark.parametrize("test", VERDICTS)
def test_verdict(run: Run, test: str) -> None:
    failure = run.failure(f"{test}[pp2]")
    for words in VERDICTS[test]:
        assert words in failure
    assert "within 60 s" not in failure
    assert run.outcome(f"{test.replace('test_', 'test_after_', 1)}[pp2]") == "PASSED"


def test_groups_were_forked(run: Run) -> None:
    assert "ranks 0,1 forked" in run.out
    assert "are spawned" not in run.out


def test_nothing_is_left_on_the_gpus(run: Run, module_runner: Runner) -> None:
    assert run.ret == 1
    module_runner.wait_for(lambda: not module_runner.processes(), "its processes are gone")
    listed = subprocess.run(
        ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert listed.stdout.split() == []
