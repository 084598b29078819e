"""Reads the memory of forwards, copies and KV transfers while these may still be under way."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._io.saferepr import saferepr

from pytest_pprank import (
    assert_kv_balanced,
    assert_materialized_on_device,
    assert_no_pending_copies,
    assert_ranks_agree,
    assert_staging_consumed,
)

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

one_stage = pytest.mark.pprank(pp=1)
overlap = pytest.mark.sglang(disable_overlap_schedule=False)


def look(engine: Engine, scheduler: Any, pprank: Pprank) -> None:
    """Read everything in every way; the values do not matter."""
    rows = scheduler.req_to_token_pool.req_to_token
    assert str(rows)
    assert all(each["rows"].is_cpu for each in pprank.gather({"rows": rows}))
    engine_facts = (engine, engine.results, engine.forwards, engine.stages, engine.idle)
    assert repr(engine_facts)
    with suppress(AssertionError):
        assert_ranks_agree([rows])
    with suppress(AssertionError):
        assert_kv_balanced(scheduler)
    for batch in (scheduler.last_batch, scheduler.running_batch, *getattr(scheduler, "mbs", ())):
        if batch is not None:
            assert saferepr(vars(batch), maxsize=10_000)
            for check in (
                assert_materialized_on_device,
                assert_staging_consumed,
                assert_no_pending_copies,
            ):
                with suppress(AssertionError):
                    check(batch)


def step_and_look(engine: Engine, scheduler: Any, pprank: Pprank) -> None:
    engine.on_forward(lambda batch: saferepr(vars(batch), maxsize=10_000))
    engine.submit(70, 4)
    engine.submit(12, 7)
    for _ in range(9):
        engine.step(1)
        look(engine, scheduler, pprank)
    engine.drain()
    assert_kv_balanced(scheduler)


def test_pipeline(engine: Engine, scheduler: Any, pprank: Pprank) -> None:
    step_and_look(engine, scheduler, pprank)


@one_stage
@overlap
def test_overlap(engine: Engine, scheduler: Any, pprank: Pprank) -> None:
    step_and_look(engine, scheduler, pprank)


@pytest.mark.pprank(prefill=1, decode=1)
@overlap
def test_disagg(disagg: Disagg, scheduler: Any, pprank: Pprank) -> None:
    step_and_look(disagg, scheduler, pprank)
