"""Plugins that work inside a test work inside each rank."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Runner

OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")

SOURCE = """
import platform
import anyio, pytest
from hypothesis import given, settings, strategies as st

def test_mock(pprank, mocker):
    mocker.patch("platform.node", return_value=f"of {pprank.rank}")
    assert pprank.gather(platform.node()) == ["of 0", "of 1"]

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_anyio(pprank):
    await anyio.sleep(0)
    assert pprank.gather(pprank.rank) == [0, 1]

def test_subtests(pprank, subtests):
    for number in range(3):
        with subtests.test(number=number):
            assert number != pprank.rank
    with subtests.test("all"):
        pprank.barrier()

@pytest.mark.timeout(2)
def test_timeout(pprank):
    import time
    time.sleep(100)

@settings(max_examples=5)
@given(number=st.integers())
def test_hypothesis(pprank, number):
    assert pprank.gather(number) == [number, number]
"""


def test_inside(module_runner: Runner) -> None:
    module_runner.write(test_it=SOURCE)
    run = module_runner.run(*OPTIONS)
    for test in ("test_mock[pp2]", "test_anyio[pp2]", "test_hypothesis[pp2]"):
        assert run.outcome(test) == "PASSED"
    # a failed subtest fails its test
    assert "contains 2 failed subtests" in run.failure("test_subtests[pp2]")
    assert "SUBFAILED" in run.out
    assert "no rank got through within 2 s" in run.failure("test_timeout[pp2]")


ASYNC = """
import asyncio, pytest

@pytest.mark.asyncio
async def test_it(pprank):
    await asyncio.sleep(0)
    assert pprank.rank == 0
"""


def test_asyncio(runner: Runner) -> None:
    runner.write(test_it=ASYNC)
    run = runner.run("-pasyncio", *OPTIONS)
    assert "failed on rank 1 of 2" in run.failure("test_it[pp2]")


def test_cov(runner: Runner) -> None:
    runner.write(
        covered="def on_ranks(rank):\n    if rank:\n        return 1\n    return 0\n",
        test_it="def test_it(pprank):\n    import covered\n    covered.on_ranks(pprank.rank)\n",
    )
    run = runner.run(*OPTIONS, "--cov=covered", "--cov-report=json:cov.json")
    assert run.ret == 0
    (file,) = json.loads((runner.folder / "cov.json").read_text())["files"].values()
    assert file["missing_lines"] == []


def test_rerunfailures(runner: Runner) -> None:
    runner.write(
        test_it="""
        from pathlib import Path
        def test_it(pprank):
            flag = Path(__file__).with_name(f"seen{pprank.rank}")
            seen = flag.exists()
            flag.touch()
            assert seen or pprank.rank == 0
        """
    )
    run = runner.run(*OPTIONS, "--reruns=1", "--only-rerun=AssertionError", "--report-log=log.json")
    assert run.counts() == {"passed": 1, "rerun": 1}
    lines = map(json.loads, (runner.folder / "log.json").read_text().splitlines())
    whole = [line["outcome"] for line in lines if line.get("when") == "call"]
    assert whole == ["rerun", "passed"]
