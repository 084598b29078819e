"""Checks on GPUs: early rewrites of staging, work that nothing orders, memory given back."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import pytest, torch

@pytest.fixture
def d(pprank):
    made = torch.zeros(1024, dtype=torch.int64, device=pprank.device)
    torch.cuda.synchronize()
    yield made
    torch.cuda.synchronize()

def staging():
    return torch.ones(1024, dtype=torch.int64).pin_memory()

def test_rewritten(process_group, d):
    source = staging()
    d.copy_(source, non_blocking=True)
    source.fill_(2)

def test_rewritten_after_to(process_group, d):
    source = staging()
    there = source.to(d.device, non_blocking=True)
    source[3] = 2

def test_rewritten_after_a_wait(process_group, d):
    source = staging()
    there = source.to(d.device, dtype=torch.int32, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    source.fill_(2)
    assert there.tolist() == [1] * 1024

def test_not_a_number(process_group, d):
    source = torch.full((8,), float("nan")).pin_memory()
    there = source.to(d.device, non_blocking=True)

@pytest.mark.pprank(sanitize="streams")
def test_unordered(process_group, d):
    with torch.cuda.stream(torch.cuda.Stream()):
        d.add_(1)
    write(d)

def write(d):
    d.mul_(2)

@pytest.mark.pprank(sanitize="streams")
def test_ordered(process_group, d):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        d.add_(1)
    torch.cuda.current_stream().wait_stream(side)
    write(d)

def test_unordered_but_not_asked(process_group, d):
    with torch.cuda.stream(torch.cuda.Stream()):
        d.add_(1)
    write(d)
"""
REWRITTEN = "h2d: int64[1024] in pinned memory was written while a copy could still read"


def used_mebibytes() -> int:
    """Return the memory that is in use on all GPUs of this machine."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    out = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    return sum(map(int, out.split()))


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> tuple[Run, int]:
    """Return a run, and how much more memory is in use after it than before."""
    before = used_mebibytes()
    module_runner.write(test_it=SOURCE)
    module_runner.deadline = 240
    done = module_runner.run("-ppytest_pprank", "--pp-size=2", "--pprank-device=cuda")
    deadline = time.monotonic() + 30  # the driver frees what a process has left some time later
    while used_mebibytes() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    return done, used_mebibytes() - before


@pytest.mark.parametrize(
    ("test", "says", "line"),
    [
        ("test_rewritten", REWRITTEN, "in test_rewritten"),
        ("test_rewritten_after_to", REWRITTEN, "in test_rewritten_after_to"),
        ("test_unordered", "streams: unordered: ", "in write"),
    ],
)
def test_found(run: tuple[Run, int], test: str, says: str, line: str) -> None:
    findings = run[0].failure(f"{test}[pp2]")
    assert says in findings
    assert line in findings


@pytest.mark.parametrize(
    "test",
    [
        "test_rewritten_after_a_wait",
        "test_not_a_number",
        "test_ordered",
        "test_unordered_but_not_asked",
    ],
)
def test_nothing_found(run: tuple[Run, int], test: str) -> None:
    assert run[0].outcome(f"{test}[pp2]") == "PASSED", run[0].failure(f"{test}[pp2]")


def test_memory_is_given_back(run: tuple[Run, int]) -> None:
    assert run[1] <= 0
