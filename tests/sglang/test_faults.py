"""Faults planted into real Schedulers, in a separate pytest (inner/faults), and their reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static import release

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def run(inner: Callable[..., Run]) -> Run:
    return inner("faults", "--pp-size", "2", "--pprank-device", "cpu", "--pprank-timeout", "60",
                 "--pprank-grace", "3")  # fmt: skip


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            "test_double_free",
            ["kv: double free: KV tokens", "on ranks 0,1", "at test_sanitizers.py:"],
        ),
        (
            "test_leak",
            [
                "kv: not balanced, with all requests done:",
                "KV pool: 3 of 4096 tokens were not given back",
                "3 KV tokens of nobody known: taken at test_sanitizers.py:",
            ],
        ),
        (
            "test_request_that_is_kept",
            ["request slots: 1 of 8", "held by req-000", "taken at test_sanitizers.py:"],
        ),
        (
            "test_use_after_free",
            ["kv: use after free: the forward's output uses KV tokens", "last of req-000"],
        ),
        (
            "test_token_of_another_request",
            ["forward: a decode enters the model: input_ids of req-000 is"],
        ),
        ("test_stale_mirror", ["forward: a decode enters the model: ForwardBatch.seq_lens_cpu"]),
        (
            "test_swallowed_failure",
            ["logs: SGLang logged at level WARNING: Failed to profile", "cure: SGLang has caught"],
        ),
        ("test_caught_traceback", ["while handling ValueError: invalid literal"]),
        ("test_starving_request", ["liveness: req-000 has not been in a forward for 128 iter"]),
        (
            "test_stage_that_runs_a_batch_twice",
            [
                "consensus: the stages of role pp did not run the same forwards in the same order:",
                "stage 0: 1 forwards, the last one extend of req-000 (tokens 0-5)",
                "stage 1: 2 forwards",
            ],
        ),
        (
            "test_handles_nobody_waits_for",
            ["p2p: isend of", "was never waited for", "scheduler_pp_mixin.py:"],
        ),
    ],
)
def test_fault_is_found(run: Run, test: str, words: list[str]) -> None:
    found = run.findings(f"{test}[pp2]")
    assert [expected for expected in words if expected not in found] == [], found


def test_harmless_warning_passes(run: Run) -> None:
    assert run.outcome("test_harmless_warning[pp2]") == "PASSED"


def test_a_leak_is_a_warning_of_the_test_that_left_it(run: Run) -> None:
    assert [run.outcome(f"test_{name}[pp2]") for name in ("leaks", "next")] == ["PASSED"] * 2
    assert "comes back all the same" in run.failure("test_leaks_and_fails[pp2]")
    busy = r"\n.*rank (\d): this test left the Scheduler busy: KV pool: 16 of 4096 tokens"
    assert re.findall(rf"test_leftovers\.py::(\S+){busy}", run.out) == [
        ("test_leaks[pp2]", "0"),
        ("test_leaks[pp2]", "1"),
    ]


def test_server_args_are_read_only(run: Run) -> None:
    assert "'mappingproxy' object does not support item" in run.failure(
        "test_args_are_read_only[pp2]"
    )


def test_scheduler_that_fails_to_start_leaves_no_file(run: Run, module_runner: Runner) -> None:
    assert run.outcome("test_of_the_same_group[pp1]") == "PASSED"
    failure = run.failure("test_without_a_scheduler[pp1]")
    assert "Invalid attention backend: nope" in failure
    assert "Captured log setup (rank 0)" in failure
    # it has a new group, after a failure: SGLang was started in its setup, too. This run has -v.
    assert "Captured log setup" in run.failure("test_double_free[pp2]")
    name = (module_runner.folder / "run-name").read_text()
    assert list(SHM.glob(f"sglang_loads_{name}*")) == []


@pytest.mark.parametrize(
    ("test", "ranks", "of_role"),
    [
        ("test_refused[pp2]", "ranks 0,1 of 2", ""),
        (
            "test_refused_with_sizes[pp1-tp2]",
            "ranks 0,1 of 2",
            "\n      --tp-size 2, or @pytest.mark.pprank(tp=2)",
        ),
        (
            "test_refused_of_one_role[prefill1-decode1]",
            "rank 0 of 2",
            " (on the stages of prefill)",
        ),
    ],
)
def test_refused_server_args(run: Run, test: str, ranks: str, of_role: str) -> None:
    """They are refused by code that only SGLang's launcher calls: SGLang's message, few lines."""
    failure, _, harness = run.failure(test).partition("- ranks -")
    mark = "@pytest.mark.sglang(chunked_prefill_size=100, page_size=64)"
    for words in (
        "SGLang does not start with these server args: "
        "chunked_prefill_size must be divisible by page_size\n",
        f"{mark}{of_role}\n",
        "check_server_args:\n",
        "AssertionError, raised at ",
    ):
        assert words in failure
    assert len(failure.splitlines()) < 10
    assert f"setup failed on {ranks}" in harness


@pytest.mark.parametrize(("role", "rank"), [("prefill", 0), ("decode", 2)])
def test_death_of_a_role(run: Run, role: str, rank: int) -> None:
    failure = run.failure(f"test_killed[{role}-prefill2-decode1]")
    assert f"rank died: rank {rank} died in call: killed by SIGKILL" in failure


def test_failure_on_one_stage_is_all_there_is(run: Run) -> None:
    """The loops of the other stage are left in the middle: its open handles are a consequence."""
    failure = run.failure("test_assertion_on_the_last_stage[pp2]")
    assert "failed on rank 1 of 2" in failure
    assert "- sanitizers -" not in failure


def test_after_a_death_all_is_new(run: Run) -> None:
    assert run.outcome("test_next[prefill2-decode1]") == "PASSED"


def test_sglang_still_refuses_the_sizes_that_we_refuse() -> None:
    """Decode has as many stages as prefill, or one: checked at collection (`planning`)."""
    root = release.package_root()
    assert root is not None
    files = (root / "srt" / "disaggregation").rglob("*.py")
    assert any("should be equal to prefill pp size" in file.read_text("utf-8") for file in files)


def test_pressure_is_borne(run: Run) -> None:
    assert run.outcome("test_retraction[pp2]") == "PASSED"


def test_nothing_else_has_gone_wrong_under_aborts(run: Run) -> None:
    failure = run.failure("test_aborts[pp2]")
    assert "2 == 3" in failure
    assert re.search(r"  rank \d: .*skew .*messages .*late_sends .*aborts", failure)


def test_stage_that_is_held_back_brings_a_race_to_light(run: Run) -> None:
    test = "test_message_beside_the_pipeline"
    assert run.outcome(f"{test}[alone-pp2]") == "PASSED"
    failure = run.failure(f"{test}[perturbed-pp2]")
    assert "what was written afterwards" in failure
    assert "rank 1: skew" in failure
