"""Stages whose ranks have different experts (expert parallelism), with a pipeline and without.

What the other files show on stages of one rank runs on such stages with ``--tp-size 2 --ep-size
2``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank.suite.ends import end_of, settle

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

CHUNK = 64

pytestmark = [
    pytest.mark.pprank(pp=(1, 2), tp=2, ep=2),
    pytest.mark.sglang(model_path="tiny:qwen3-moe", chunked_prefill_size=CHUNK),
]


def test_requests_of_many_lengths(engine: Engine) -> None:
    results = engine.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7], logprobs=True)
    assert len(results[-1].extends) >= 3
    settle(engine)


@pytest.mark.pprank(
    known_bug=("aborted-prompt-is-computed-to-its-end", "abort-misses-other-microbatch-slots")
)
def test_aborts_of_requests_in_any_state(engine: Engine) -> None:
    rids = [engine.submit(20 + index, 16) for index in range(3)]
    rids.append(engine.submit(5 * CHUNK, 4))
    engine.run_until(lambda: engine.chunks_done(rids[-1]) >= 2)
    rids.append(engine.submit(33, 4))
    aborted = (rids[0], rids[-2], rids[-1])
    for rid in aborted:
        engine.abort(rid)
    settle(engine, *aborted)
    assert end_of(engine.results[rids[1]]) == "length"


def test_each_rank_has_a_share_of_the_experts(engine: Engine, pprank: Pprank) -> None:
    """Of all layers: other experts than the stage's other rank, and as many."""
    layers = engine.scheduler.tp_worker.model_runner.model.model.layers
    own = [layer.mlp.experts for layer in layers if hasattr(layer, "mlp")]
    assert own
    for experts in own:
        assert len(experts.w13_weight) * pprank.ep_size == experts.num_experts
    sums = [float(weight.sum()) for experts in own for weight in experts.w13_weight.cpu()]
    of_stage = [
        found for stage, found in pprank.gather((pprank.stage, sums)) if stage == pprank.stage
    ]
    every = [found for each in of_stage for found in each]
    assert len({*every}) == len(every)
    engine.generate([9], 2)
    settle(engine)
