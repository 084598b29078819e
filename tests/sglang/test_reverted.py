"""SGLang with several fixes reverted, in a separate pytest (inner/reverted), and its reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.compat.consensus import by_store

if TYPE_CHECKING:
    from tests.conftest import Run

REVERTS = ("loops.yaml", "agreement.yaml", "26883", "27374")
SUITE = (
    "pressure::test_one_request_at_a_time",
    "aborts::test_request_in_the_middle_of_its_prompt",
    "chunks::test_chunks_whose_output_is_not_sent",
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "test_profiler_h2d.py"


@pytest.fixture(scope="module")
def run(inner: Callable[..., Run]) -> Run:
    args = ["--rootdir", ".", "--pp-size", "2", "--pprank-device", "cpu", "--pprank-timeout", "60"]
    args += ["--pprank-grace", "3"]
    args += [f"--pprank-revert={revert}" for revert in REVERTS]
    suite = [f"pytest_pprank.suite.test_generate_{test}" for test in SUITE]
    return inner(
        "reverted", *args, "--pyargs", "test_agreement.py", "test_stuck.py", *suite, str(EXAMPLE)
    )


def test_founding_case(run: Run) -> None:
    """The example fails with the fix of SGLang PR 26883 reverted."""
    failure = run.failure("test_profiler_is_ready[pp2]")
    for expected in (
        "ForwardBatch.input_ids: found None",
        "prefill_input_ids_cpu still holds",
        "_profile_prefill_latency",
        "on rank 0 (stage 0 of 2)",
        "SGLang PR 26883",
    ):
        assert expected in failure


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            "test_one_request_at_a_time",
            [
                "EngineStalled: nothing has moved for",
                "req-001: prompt of 192 tokens",
                "chunked_req",
            ],
        ),
        (
            "test_request_in_the_middle_of_its_prompt",
            [
                "event loop failed in ",
                "ValueError: pool memory leak",
                "held by req-000: request slot",
            ],
        ),
        (
            "test_chunks_whose_output_is_not_sent",
            [
                "hung: deadlock: ranks 0,1",
                "rank 0 waits in recv from rank 1 (scheduler_pp_mixin.py",
            ],
        ),
        (
            "test_stage_that_does_not_come_back",
            ["rank 1", "Stacks of rank 1", "in _at_forward", "in event_loop_pp"],
        ),
    ],
)
def test_fault_in_the_loops_is_told(run: Run, test: str, words: list[str]) -> None:
    failure = run.failure(f"{test}[pp2]")
    for expected in words:
        assert expected in failure


BRINGS = "consensus: this stage brings trusted as ready, and is not ready for it"


def test_stage_that_hears_late(run: Run) -> None:
    failure = run.failure("test_stages_that_hear_late[prefill2-decode1]")
    assert re.search(BRINGS.replace("trusted", r"trusted\d"), failure)
    assert re.search(
        r"perturbed: seed \d+ \(polls\)\n(  rank.*\n)*  ranks? [\d,]+: polls \w+", failure
    )


def test_request_lost_after_agreement(run: Run) -> None:
    failure = run.failure("test_request_lost_after_agreement[prefill2-decode1]")
    if by_store():
        assert "hung: deadlock: ranks 0,1" in failure
        assert "rank 0 waits in send to rank 1 (scheduler_pp_mixin.py" in failure
    else:
        differ = "consensus: consensus received and applied differ in lonely: received ['lonely']"
        assert differ in failure


@pytest.mark.parametrize(
    ("perturbation", "test", "words"),
    [
        ("transfers", "test_stage_whose_transfer_takes_long", BRINGS),
        ("metadata", "test_slot_that_still_has_the_last_room", "Context corruption detected"),
    ],
)
def test_race_that_goes_well_by_itself(run: Run, perturbation: str, test: str, words: str) -> None:
    assert run.outcome(f"{test}[alone-prefill2-decode1]") == "PASSED"
    failure = run.failure(f"{test}[perturbed-prefill2-decode1]")
    assert words in failure
    assert re.search(rf"  rank \d: {perturbation} \w+", failure)


def test_what_the_run_says_of_the_reverted_code(run: Run) -> None:
    """The end of the run says how many tests reached it."""
    assert re.search(r"\d+ of \d+ tests came to the reverted code; \d+ of them went red", run.out)
