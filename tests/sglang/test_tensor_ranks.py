"""Ranks of one stage that part ways are named, with what differs between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_ranks_agree, assert_tokens_equal_reference
from pytest_pprank.sglang.driver.series import StagesDiffer

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

pytestmark = [
    # on sim, what a test itself changes on the device has no order with the event loop
    pytest.mark.pprank(pp=2, tp=2, device="cpu"),
    pytest.mark.sglang(chunked_prefill_size=64, max_running_requests=1),
]


def test_places_of_ranks(pprank: Pprank, engine: Engine) -> None:
    stage, tp_rank = divmod(pprank.rank, 2)
    assert (pprank.stage, pprank.tp_rank) == (stage, tp_rank)
    assert (pprank.num_stages, pprank.tp_size, pprank.world_size) == (2, 2, 4)
    assert pprank.place == f"rank {pprank.rank}, stage {stage} of 2, tp {tp_rank} of 2"
    engine.generate([20], 2)
    assert [view.place for view in engine.stages] == ["stage 0, tp 0", "stage 1, tp 0"]
    assert_ranks_agree(engine.stages)


def test_control_request_is_handled_by_each_rank(engine: Engine) -> None:
    control = engine.control("flush_cache", wait=True)
    assert control.handled == {"pp": {0, 1, 2, 3}}


def test_rank_that_evicts_more(engine: Engine, pprank: Pprank) -> None:
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    engine.generate([40], 2)
    if pprank.rank == 3:
        engine.scheduler.tree_cache.evict(EvictParams(num_tokens=10))
    with pytest.raises(StagesDiffer) as error:
        engine.step()
    head, known, other = str(error.value).splitlines()
    assert head == "the ranks of a stage differ in the memory in use, with what is cached:"
    assert known == "  stage 1, tp 0: 41 KV tokens, 0 request slots"
    assert other.startswith("  stage 1, tp 1: ")
    pprank.spoil("a rank has evicted more than the others")


def test_rank_that_loses_a_request(engine: Engine, pprank: Pprank) -> None:
    engine.submit(30, 30)
    lost = engine.submit(20, 2)
    engine.step(4)
    assert all(lost in view.waiting for view in engine.stages)
    if pprank.rank == 1:
        engine.scheduler.waiting_queue.clear()
    with pytest.raises(StagesDiffer) as error:
        engine.step()
    assert str(error.value).splitlines() == [
        "the ranks of a stage differ in their waiting queue:",
        f"  stage 0, tp 0: ('{lost}',)",
        "  stage 0, tp 1: nothing",
    ]
    pprank.spoil("a rank has lost a request")


def test_where_wrong_kv_begins(engine: Engine, pprank: Pprank) -> None:
    """Each rank's heads are compared with its own of the reference."""
    import torch

    if pprank.rank == 1:
        layer = engine.scheduler.tp_worker.model_runner.model.model.layers[0]
        with torch.no_grad():
            layer.mlp.down_proj.weight.mul_(2)
    result = engine.generate([40], 4)
    with pytest.raises(AssertionError, match="tokens differ from the reference") as error:
        assert_tokens_equal_reference(result)
    for rank, words in enumerate(("layer 1: keys", "layer 1: keys", "layer 2: keys")):
        place = pprank.sizes.rank_names[rank].partition(", ")[2]
        layers = f"layers {rank // 2 * 2} to {rank // 2 * 2 + 1}"
        assert f"rank {rank} ({place}) ({layers}): {words}" in str(error.value)
    pprank.spoil("weights of this rank are not those of the model")
