"""Ranks of one stage with different experts: where they are, and one that drops tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

# on sim, what a test itself changes on the device has no order with the event loop
pytestmark = pytest.mark.pprank(pp=2, tp=2, ep=2, device="cpu")


def test_places_of_ranks(pprank: Pprank, engine: Engine) -> None:
    stage, tp_rank = divmod(pprank.rank, 2)
    assert pprank.coordinates == (stage, tp_rank, 0, tp_rank)
    assert pprank.coordinates._asdict() == {"pp": stage, "tp": tp_rank, "dp": 0, "ep": tp_rank}
    assert (pprank.ep_rank, pprank.ep_size, pprank.dp_size) == (tp_rank, 2, 1)
    assert pprank.place == f"rank {pprank.rank}, stage {stage} of 2, tp {tp_rank} of 2"
    expert = engine.scheduler.tp_worker.model_runner.model.model.layers[stage * 2].mlp.experts
    assert (expert.moe_ep_rank, expert.moe_ep_size) == (tp_rank, 2)
    assert_tokens_equal_reference(engine.generate([20], 2))


@pytest.mark.pprank(sanitize="-experts")  # which names the rank: see inner/parallel
def test_rank_that_drops_the_tokens_of_its_experts(engine: Engine, pprank: Pprank) -> None:
    layer = engine.scheduler.tp_worker.model_runner.model.model.layers[pprank.stage * 2]
    engine.generate([20], 2)
    if pprank.rank == 1:
        layer.mlp.experts.dispatcher.local_expert_mapping.fill_(-1)
    result = engine.generate([40], 4)
    with pytest.raises(AssertionError, match="tokens differ from the reference") as error:
        assert_tokens_equal_reference(result)
    assert "rank 0 (stage 0 of 2, tp 0 of 2) (layers 0 to 1): layer 1: keys" in str(error.value)
    pprank.spoil("a rank skips its experts")
