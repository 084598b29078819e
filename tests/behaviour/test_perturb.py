"""A race that normally goes well shows with a perturbation, and again with the same seed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    import time

    import pytest
    import torch
    import torch.distributed as dist


    def two_messages(pprank, wait_for_both):
        for number in range(100):
            tensors = [torch.full((4,), -1 if pprank.rank else number) for _ in range(2)]
            if pprank.rank:
                works = [dist.irecv(tensors[tag], 0, tag=tag) for tag in range(2)]
            else:
                works = [dist.isend(tensors[tag], 1, tag=tag) for tag in range(2)]
            works[1].wait()
            seen = tensors[0].clone()
            pprank.barrier()  # or who looks late sees both: waiting lets a message leave
            works[0].wait()  # once: gloo's wait does not end when it is called again
            seen = tensors[0] if wait_for_both else seen
            assert seen[0] == number, "the first one cannot come after the second one"


    def test_overtaken(process_group, pprank):
        two_messages(pprank, wait_for_both=False)


    def test_right(process_group, pprank):
        two_messages(pprank, wait_for_both=True)


    @pytest.mark.pprank(perturb="none")
    def test_left_alone(process_group, pprank):
        two_messages(pprank, wait_for_both=False)


    @pytest.mark.pprank(perturb="1:late_sends")
    def test_perturbed_in_each_run(process_group, pprank):
        two_messages(pprank, wait_for_both=True)
        assert pprank.world_size == 3, "to see what is told"


    # gloo hides it where the receiver waits already
    @pytest.mark.parametrize(
        "how",
        [
            pytest.param("alone", marks=pytest.mark.pprank(perturb="none")),
            # a seed that holds rank 1 back for 60 ms and more before its third and fourth recv
            pytest.param("held", marks=pytest.mark.pprank(perturb="24766:messages")),
        ],
    )
    def test_written_to_before_it_has_left(process_group, pprank, how):
        for number in range(1, 5):
            message = torch.full((4,), -1 if pprank.rank else number)
            pprank.barrier()
            if pprank.rank:
                dist.recv(message, 0)
                assert message[0] == number, "not what was given to isend"
            else:
                time.sleep(0.03)  # something to do, while rank 1 begins to wait
                work = dist.isend(message, 1)
                message.zero_()
                work.wait()
"""


def run(module_runner: Runner, *args: str) -> Run:
    module_runner.write(test_it=TESTS)
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu", *args)


@pytest.fixture(scope="module")
def quiet(module_runner: Runner) -> Run:
    return run(module_runner)


@pytest.fixture(scope="module")
def perturbed(module_runner: Runner) -> Run:
    return run(module_runner, "--pprank-perturb", "1:late_sends")


def outcomes(run: Run) -> list[str]:
    names = ("overtaken", "right", "left_alone", "perturbed_in_each_run")
    return [run.outcome(f"test_{name}[pp2]") for name in names]


def test_race_goes_well_by_itself(quiet: Run) -> None:
    assert outcomes(quiet) == ["PASSED", "PASSED", "PASSED", "FAILED"]


def test_rank_that_comes_late(quiet: Run) -> None:
    assert quiet.outcome("test_written_to_before_it_has_left[alone-pp2]") == "PASSED"
    late = "test_written_to_before_it_has_left[held-pp2]"
    assert quiet.outcome(late) == "FAILED"
    assert "not what was given to isend" in quiet.failure(late)


def test_race_comes_to_light(perturbed: Run) -> None:
    assert outcomes(perturbed) == ["FAILED", "PASSED", "PASSED", "FAILED"]
    assert "pprank: perturbed, --pprank-perturb 1:late_sends" in perturbed.out
    failure = perturbed.failure("test_overtaken[pp2]")
    assert "cannot come after the second one" in failure
    assert "perturbed: seed 1 (late_sends)" in failure
    assert (
        " 'test_it.py::test_overtaken[pp2]' --pp-size 2 --pprank-device cpu "
        "--pprank-perturb 1:late_sends" in failure
    )


def test_same_seed_does_the_same_to_the_test_alone(perturbed: Run, module_runner: Runner) -> None:
    """The command in a failure that repeats it runs one test, the first in its worker group."""
    name = "test_perturbed_in_each_run[pp2]"
    before = perturbed.failure(name)
    (command,) = re.findall(r"again: .* 'test_it.py::.*' (.*)", before)
    again = module_runner.run(*command.split(), f"test_it.py::{name}").failure(name)
    did = re.findall(r"  rank [01]: .*", before)
    assert re.findall(r"  rank [01]: .*", again) == did
    assert re.fullmatch(r"  rank 0: late_sends \d+ times, [\d.]+ ms", did[0])
    assert did[1:] == ["  rank 1: nothing came of it"]
