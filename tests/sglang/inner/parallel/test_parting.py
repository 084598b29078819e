"""Ranks of a stage that part ways inside SGLang, so that the others wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

pytestmark = pytest.mark.pprank(pp=2, tp=2, dp=2, device="cpu", timeout=120)


def test_dp_rank_without_requests_does_not_meet(engine: Engine, pprank: Pprank) -> None:
    """It neither asks the others whether they have any, nor takes part in their forwards."""

    def do_not_meet(_: object, batch: object, need_sync: object = None) -> object:
        del need_sync
        return batch

    if pprank.rank == 1:
        adapter = type(engine.scheduler.dp_attn_adapter)
        adapter.maybe_prepare_mlp_sync_batch = do_not_meet
    engine.submit(20, dp_rank=0)
    engine.drain()


def test_dp_rank_that_drops_its_idle_batch(engine: Engine, pprank: Pprank) -> None:
    """It meets the others, and then does not run the batch of no rows."""
    if pprank.rank == 1:
        adapter = type(engine.scheduler.dp_attn_adapter)
        meet = adapter.maybe_prepare_mlp_sync_batch

        def drop(self: object, batch: object, need_sync: object = None) -> object:
            met = meet(self, batch, need_sync)
            return None if met is not None and met.forward_mode.is_idle() else met

        adapter.maybe_prepare_mlp_sync_batch = drop
    engine.submit(20, dp_rank=0)
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
