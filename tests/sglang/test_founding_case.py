"""SGLang PR 26883: the healthy profiler, and the message of a failure in it.

test_reverted.py runs it with the fix reverted, in a separate pytest.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_profiler_ready

if TYPE_CHECKING:
    from pytest_pprank import Pprank

pytestmark = pytest.mark.sglang(enable_dynamic_chunking=True)


def test_healthy_profiler(scheduler: Any) -> None:
    assert_profiler_ready(scheduler)


def test_only_the_first_stage_runs_forwards_and_finds_nothing(
    scheduler: Any, pprank: Pprank
) -> None:
    from pytest_pprank.sglang.stage.stage import this_stage

    run = this_stage().started(scheduler).profiler_run
    assert run.ran
    assert (run.findings, run.warnings) == ([], [])
    assert (run.forwards > 8) == pprank.is_first_stage


def test_virtual_clock_makes_the_fit_the_same_in_every_run(scheduler: Any) -> None:
    from pytest_pprank.sglang.compat.profiler import predict_chunk
    from pytest_pprank.sglang.stage.profiler import run_profiler

    before = [predict_chunk(scheduler, history) or 0 for history in (0, 300, 900, 2000)]
    run_profiler(scheduler)
    assert [predict_chunk(scheduler, history) for history in (0, 300, 900, 2000)] == before
    assert before == sorted(map(int, before), reverse=True)


@pytest.mark.pprank(sanitize="-logs")
def test_warnings_before_the_profiler_are_not_its() -> None:
    """SGLang's start warns of other things, too (custom all-reduce on GPUs)."""
    from pytest_pprank.sglang.stage.profiler import watch_profiler

    with watch_profiler() as run:
        log = logging.getLogger("sglang.srt.distributed.parallel_state")
        log.warning("Setup failed to find something")
        assert run.problems() == []
        run.ran = True
        log.warning("Setup failed to find something")
    assert run.problems() == ["SGLang swallowed: Setup failed to find something"]


@pytest.mark.pprank(sanitize="none")
def test_failure_of_one_forward_is_found_on_all_ranks(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from pytest_pprank.sglang.stage.idle import reset_scheduler

    prepare = ScheduleBatch.prepare_for_extend

    def without_locations(batch: Any) -> None:
        prepare(batch)
        batch.out_cache_loc = None

    monkeypatch.setattr(ScheduleBatch, "prepare_for_extend", without_locations)
    with pytest.raises(AssertionError) as error:
        assert_profiler_ready(scheduler)
    message = str(error.value)
    assert "on rank 0 (stage 0" in message.splitlines()[1]
    assert "ForwardBatch.out_cache_loc: found None" in message
    assert "SGLang swallowed" in message
    assert "no usable predictor" in message
    # otherwise the plugin would warn of the failed forward's KV
    reset_scheduler(scheduler)


def test_reset_restores_the_chunk_sizer(scheduler: Any) -> None:
    from pytest_pprank.sglang.compat.profiler import predict_chunk
    from pytest_pprank.sglang.stage.idle import reset_scheduler

    scheduler.dynamic_chunk_sizer = scheduler.length_predictor = None
    assert predict_chunk(scheduler, 0) is None
    reset_scheduler(scheduler)
    assert predict_chunk(scheduler, 0)
