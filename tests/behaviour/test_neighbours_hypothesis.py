"""hypothesis in ranked tests: the same examples on all ranks, simplified together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

pytest.importorskip("hypothesis")

SOURCE = """
import os, time, unittest
import pytest
from hypothesis import Phase, assume, example, given, settings, stateful, strategies as st
from pytest_pprank.rank.context import current_rank

@given(number=st.integers(), more=st.lists(st.text()))
def test_same_examples(pprank, number, more):
    assert pprank.gather((number, more)) == [(number, more)] * 2

@given(number=st.integers())
def test_collectives(process_group, pprank, number):
    import torch, torch.distributed as dist
    assume(number % 3)
    total = torch.tensor([number % 100])
    dist.all_reduce(total)
    assert total.item() == 2 * (number % 100)

@given(number=st.integers(), more=st.lists(st.integers()))
def test_one_rank_fails(process_group, pprank, number, more):
    import torch.distributed as dist
    dist.barrier()
    assert pprank.rank == 0 or number < 1000

@given(number=st.integers())
def test_all_ranks_fail(pprank, number):
    assert number < 1000

@given(number=st.integers())
def test_ranks_fail_differently(pprank, number):
    if number >= 1000 * (pprank.rank + 1):
        raise ValueError(pprank.rank)

@given(number=st.integers())
def test_fails_while_its_peer_waits_in_a_meeting(pprank, number):
    assert pprank.rank == 0 or number < 1000
    pprank.barrier()

@given(number=st.integers(), data=st.data())
def test_draws_inside(pprank, number, data):
    more = data.draw(st.integers(0, 9))
    assert pprank.gather(more) == [more, more]
    assert number + more < 1000 or pprank.rank == 0

@given(data=st.data())
def test_draws_by_rank(pprank, data):
    if pprank.rank:
        data.draw(st.integers())

@given(number=st.integers())
def test_assumes_by_rank(pprank, number):
    if pprank.rank:
        assume(number % 2)

@given(number=st.integers())
def test_assumes_by_rank_then_meets(pprank, number):
    if pprank.rank:
        assume(number % 2)
    pprank.barrier()

@example(number=7)
@given(number=st.integers())
def test_explicit_example(pprank, number):
    assert number != 7 or pprank.rank == 0

@settings(deadline=1, max_examples=5)
@given(number=st.integers())
def test_deadline_of_one_rank(pprank, number):
    if pprank.rank:
        time.sleep(0.01)

@settings(max_examples=300)
@given(number=st.integers())
def test_target_by_rank(pprank, number):
    from hypothesis import target
    target(float(pprank.rank * (abs(number) % 1000)))
    assert len(set(pprank.gather(number))) == 1

@pytest.mark.parametrize("parameter", [1, 2])
@given(number=st.integers())
def test_parametrized(pprank, parameter, number):
    assert len(set(pprank.gather((parameter, number)))) == 1

@pytest.mark.pprank(pp=2)
class TestCase(unittest.TestCase):
    @given(number=st.integers())
    def test_method(self, number):
        assert len(set(current_rank().gather(number))) == 1
        assert number < 1000

class Machine(stateful.RuleBasedStateMachine):
    @stateful.rule()
    def rule(self):
        pass

TestMachine = pytest.mark.pprank(pp=2)(Machine.TestCase)

@given(number=st.integers())
def test_plain(number):
    pass

def test_after(pprank):
    pprank.barrier()
"""
PASS = [
    "test_same_examples[pp2]",
    "test_collectives[pp2]",
    "test_assumes_by_rank[pp2]",
    "test_deadline_of_one_rank[pp2]",
    "test_target_by_rank[pp2]",
    "test_parametrized[1-pp2]",
    "test_parametrized[2-pp2]",
    "test_plain",
    "test_after[pp2]",
]
FAIL = {
    "test_one_rank_fails[pp2]": "rank 1",
    "test_all_ranks_fail[pp2]": "ranks 0,1",
    "test_ranks_fail_differently[pp2]": "rank 0",
    "test_draws_inside[pp2]": "rank 1",
    "test_explicit_example[pp2]": "rank 1",
    "TestCase.test_method": "ranks 0,1",
}


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    return module_runner.run("--pp-size=2", "--pprank-device=cpu")


@pytest.mark.parametrize("test", PASS)
def test_passes(run: Run, test: str) -> None:
    assert run.outcome(test) == "PASSED"


@pytest.mark.parametrize("test", FAIL)
def test_fails(run: Run, test: str) -> None:
    assert f"failed on {FAIL[test]} of 2" in run.failure(test)


@pytest.mark.parametrize("test", ["one_rank_fails", "all_ranks_fail", "ranks_fail_differently"])
def test_example_is_minimal(run: Run, test: str) -> None:
    block = run.failure(f"test_{test}[pp2]")
    assert re.search(r"number=1000\b", block)
    assert "not minimal" not in block
    assert "hypothesis_lockstep" not in block


def test_unused_arguments_are_minimal_too(run: Run) -> None:
    assert "more=[]" in run.failure("test_one_rank_fails[pp2]")


def test_peers_name_the_rank_that_failed(run: Run) -> None:
    block = run.failure("test_one_rank_fails[pp2]")
    assert "rank 0 failed as a consequence" in block
    assert "this example failed on rank 1: AssertionError" in block


def test_failure_in_a_meeting(run: Run) -> None:
    """The peer cannot finish the example: what is known is reported, without delay."""
    block = run.failure("test_fails_while_its_peer_waits_in_a_meeting[pp2]")
    assert "failed on rank 1 of 2" in block
    assert "rank 0 failed as a consequence" in block


def test_different_draws_are_named(run: Run) -> None:
    block = run.failure("test_draws_by_rank[pp2]")
    assert "hypothesis drew different values on the ranks in example 1" in block
    assert "must not depend on the rank" in block


def test_different_assumptions_are_named(run: Run) -> None:
    block = run.failure("test_assumes_by_rank_then_meets[pp2]")
    assert "assume the same things on all ranks" in block


def test_state_machines_are_refused(run: Run) -> None:
    assert "RuleBasedStateMachine) cannot be ranked" in run.failure("TestMachine.runTest")


def test_failure_while_the_peer_is_stuck(runner: Runner) -> None:
    """It takes the grace period; the report has the failure and where the peer is stuck."""
    runner.write(
        test_it="""
        import pytest
        from hypothesis import given, strategies as st
        @given(number=st.integers())
        def test_stuck(process_group, pprank, number):
            import torch.distributed as dist
            if pprank.rank == 1 and number > 1000:
                raise ValueError("boom")
            dist.barrier()
        @given(number=st.integers())
        def test_next(pprank, number):
            assert pprank.gather(number) == [number, number]
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "--pprank-grace=1")
    block = run.failure("test_stuck[pp2]")
    assert "ValueError: boom" in block
    assert "The example is not minimal" in block
    assert "rank 0 is still inside call" in block
    assert run.outcome("test_next[pp2]") == "PASSED"


def test_failing_example_is_kept_and_tried_first(runner: Runner) -> None:
    runner.write(
        test_it="""
        from pathlib import Path
        from hypothesis import given, settings, strategies as st
        from hypothesis.database import DirectoryBasedExampleDatabase
        @settings(database=DirectoryBasedExampleDatabase("kept"))  # in CI there is none by default
        @given(number=st.integers())
        def test_it(pprank, number):
            if pprank.rank == 0:
                with Path("tried").open("a") as file:
                    print(number, file=file)
            assert number < 12345 or pprank.rank == 0
        """
    )
    for _ in range(2):
        (runner.folder / "tried").write_text("")
        run = runner.run("--pp-size=2", "--pprank-device=cpu")
        assert "number=12345" in run.failure("test_it[pp2]")
    assert (runner.folder / "tried").read_text().split()[0] == "12345"


def test_async(runner: Runner) -> None:
    pytest.importorskip("pytest_asyncio")
    runner.write(
        test_it="""
        import asyncio, pytest
        from hypothesis import given, strategies as st
        @pytest.mark.asyncio
        @given(number=st.integers())
        async def test_it(pprank, number):
            await asyncio.sleep(0)
            assert number < 1000 or pprank.rank == 0
        """
    )
    run = runner.run("-pasyncio", "--pp-size=2", "--pprank-device=cpu")
    assert re.search(r"number=1000\b", run.failure("test_it[pp2]"))
