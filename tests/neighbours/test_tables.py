"""Plugins that measure: measurements of ranks are in the controller's table and file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")

BENCHMARK = """
import time
import torch, torch.distributed as dist
import pytest

def test_plain(benchmark):
    benchmark(lambda: None)

def test_collective(benchmark, process_group, pprank):
    ones = torch.ones(1)
    rounds = []
    def reduce():
        rounds.append(1)
        dist.all_reduce(ones)
        ones.fill_(1)
    benchmark(reduce)
    assert len(set(pprank.gather(len(rounds)))) == 1

def test_slow_rank(benchmark, pprank):
    benchmark.pedantic(time.sleep, args=(0.05 if pprank.rank == 1 else 0,), rounds=3)

@pytest.mark.parametrize("x", [1])
def test_fails(benchmark, pprank, x):
    benchmark(lambda: None)
    assert pprank.rank == 0
"""
QUICK = ("--benchmark-max-time=0.05", "--benchmark-min-rounds=3")


def test_benchmark(runner: Runner) -> None:
    runner.write(test_it=BENCHMARK)
    run = runner.run(*OPTIONS, *QUICK, "--benchmark-json=out.json", "--benchmark-only")
    assert run.counts() == {"failed": 1, "passed": 3}, run.out
    benchmarks = json.loads((runner.folder / "out.json").read_text())["benchmarks"]
    means = {each["name"]: each["stats"]["mean"] for each in benchmarks}
    assert set(means) >= {"test_plain", "test_collective[pp2]", "test_slow_rank[pp2]"}
    assert len(benchmarks) == len(means)
    assert means["test_slow_rank[pp2]"] >= 0.05  # of the slowest rank
    assert "test_collective[pp2]" in run.out.partition("Name (time in")[2]


@pytest.mark.parametrize("more", [("--benchmark-disable",), ("-n2",)], ids=["disabled", "n2"])
def test_benchmark_that_is_off(runner: Runner, more: tuple[str]) -> None:
    """Each function runs once."""
    runner.write(
        test_it=BENCHMARK.replace("rounds.append(1)", "rounds.append(1); assert rounds[1:] == []")
    )
    run = runner.run(*OPTIONS, *QUICK, *more, "-k", "collective")
    counts = run.counts()
    counts.pop("deselected", None)  # pytest-xdist does not count them
    assert counts == {"passed": 1}, run.out


def test_benchmark_starts_on_a_rank_as_outside_xdist(runner: Runner) -> None:
    """In a worker of xdist it warns up to 5.2: an error, with filterwarnings = error."""
    runner.write(
        conftest="""
        import os
        from pytest_benchmark import session

        start = session.BenchmarkSession.__init__

        def start_outside(self, config):
            assert "PYTEST_XDIST_WORKER" not in os.environ
            start(self, config)

        session.BenchmarkSession.__init__ = start_outside
        """,
        test_it="""
        import os

        def test_rank(benchmark, pprank):
            benchmark(lambda: None)
            assert os.environ["PYTEST_XDIST_WORKER"] == f"pp{pprank.rank}"
        """,
    )
    run = runner.run(*OPTIONS, *QUICK)
    assert run.counts() == {"passed": 1}, run.out


MEMRAY = """
import pytest

def test_plain():
    bytearray(1 << 20)

def test_by_rank(pprank):
    bytearray((1 + pprank.rank) << 22)

@pytest.mark.limit_memory("1 MB")
def test_too_much(pprank):
    if pprank.rank == 1:
        bytearray(1 << 24)
"""


@pytest.mark.parametrize("more", [(), ("-n2",), ("--memray-bin-path=bin",)], ids=["", "n2", "path"])
def test_memray(runner: Runner, more: tuple[str]) -> None:
    """The report has each rank; a limit fails the test on the rank that exceeded it."""
    runner.write(test_it=MEMRAY)
    run = runner.run(*OPTIONS, "--memray", *more)
    assert run.counts()["passed"] == 2, run.out
    for name in ("test_plain", "test_by_rank[pp2] (rank 0)", "test_by_rank[pp2] (rank 1)"):
        assert f"Allocation results for test_it.py::{name} at the high watermark" in run.out
    assert "failed on rank 1 of 2" in run.failure("test_too_much[pp2]")
    assert len(list(runner.folder.glob("bin/*.bin"))) == (5 if "path" in "".join(more) else 0)
