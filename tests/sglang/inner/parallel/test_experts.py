"""A rank whose experts leave out tokens, or have other numbers than the router gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from pytest_pprank import Engine, Pprank

DEVICES = ("cpu", "sim")

pytestmark = [
    pytest.mark.pprank(pp=2, tp=2, ep=2, sanitize="experts"),
    pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=pytest.mark.pprank(device=kind)) for kind in DEVICES]
    ),
]


def own_experts(engine: Engine, pprank: Pprank) -> torch.Tensor:
    """Return which of the experts are here, and where, in the stage's first layer."""
    layer = engine.scheduler.tp_worker.model_runner.model.model.layers[pprank.stage * 2]
    found: torch.Tensor = layer.mlp.experts.dispatcher.local_expert_mapping
    return found


def test_rank_that_drops_tokens(engine: Engine, pprank: Pprank, kind: str) -> None:
    assert pprank.device.startswith(kind)
    engine.generate([20], 2)
    if pprank.rank == 3:
        own_experts(engine, pprank).fill_(-1)
    engine.generate([40], 4)
    pprank.spoil("a rank skips its experts")


def test_rank_that_numbers_its_experts_otherwise(engine: Engine, pprank: Pprank, kind: str) -> None:
    assert pprank.device.startswith(kind)
    engine.generate([20], 2)
    if pprank.rank == 1:
        own = own_experts(engine, pprank)
        own[2], own[3] = 1, 0
    engine.generate([40], 4)
    pprank.spoil("a rank has other experts than it says")
