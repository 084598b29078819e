"""Stages of several ranks (tensor parallelism), with a pipeline, without, and between roles.

What the other files show on stages of one rank runs on such stages with ``--tp-size 2``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of, settle

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

CHUNK = 64

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)


@pytest.mark.pprank(pp=(1, 2), tp=2)
class TestEngine:
    def test_requests_of_many_lengths(self, engine: Engine) -> None:
        results = engine.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7], logprobs=True)
        assert len(results[-1].extends) >= 3
        settle(engine)

    def test_prefix_that_is_cached(self, engine: Engine) -> None:
        prompt = [*range(1000, 1000 + CHUNK + 9)]
        engine.generate([prompt], 3)
        results = engine.generate([[*prompt, 7, 8], prompt, [*prompt[:CHUNK], 5]], 4)
        assert [result.cached_tokens for result in results] == [CHUNK + 9, CHUNK + 8, CHUNK]
        settle(engine)

    @pytest.mark.pprank(
        known_bug=("aborted-prompt-is-computed-to-its-end", "abort-misses-other-microbatch-slots")
    )
    def test_aborts_of_requests_in_any_state(self, engine: Engine) -> None:
        rids = [engine.submit(20 + index, 16) for index in range(3)]
        rids.append(engine.submit(5 * CHUNK, 4))
        engine.run_until(lambda: engine.chunks_done(rids[-1]) >= 2)
        rids.append(engine.submit(33, 4))
        aborted = (rids[0], rids[-2], rids[-1])
        for rid in aborted:
            engine.abort(rid)
        settle(engine, *aborted)
        assert end_of(engine.results[rids[1]]) == "length"

    def test_each_rank_has_a_share_of_the_heads(self, engine: Engine, pprank: Pprank) -> None:
        """Of all layers: other heads than the stage's other rank, and as many."""
        layers = engine.scheduler.tp_worker.model_runner.model.model.layers
        own = [layer.self_attn for layer in layers if hasattr(layer, "self_attn")]
        weights = [attention.o_proj.weight.cpu() for attention in own]
        width = own[0].total_num_heads * own[0].head_dim
        assert [weight.shape[1] * pprank.tp_size for weight in weights] == [width] * len(own)
        shares = pprank.gather((pprank.stage, [float(weight.sum()) for weight in weights]))
        of_stage = [sums for stage, sums in shares if stage == pprank.stage]
        assert len({*map(tuple, of_stage)}) == pprank.tp_size
        engine.generate([9], 2)
        settle(engine)


@pytest.mark.pprank(pp=2, tp=2)
@pytest.mark.sglang(chunked_prefill_size=32, max_total_tokens=128, schedule_conservativeness=0.05)
def test_requests_that_are_retracted(engine: Engine) -> None:
    """Each rank takes KV away by itself, from the same requests.

    SGLang aborts a request that finds no KV and is alone in its microbatch. Whether one is depends
    on when the requests arrive.
    """
    results = engine.generate([20 + index for index in range(4)], max_new_tokens=30)
    assert any(result.retractions for result in results)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(prefill={"pp": 2, "tp": 1}, decode={"pp": 1, "tp": 2})
class TestHeadsAreSplit:
    """Each rank of decode gets its heads of what one rank of prefill has computed."""

    def test_requests_of_many_lengths(self, disagg: Disagg) -> None:
        disagg.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7], 5)
        settle(disagg)

    def test_abort_while_transferring(self, disagg: Disagg) -> None:
        slow = disagg.slow_transfer(stages=[0, 1])
        aborted, other = disagg.submit(30), disagg.submit(40)
        disagg.abort_when(aborted, "transferring", at="prefill")
        slow.release()
        settle(disagg, aborted)
        assert end_of(disagg.results[other]) == "length"


@pytest.mark.pprank(prefill={"pp": 1, "tp": 2}, decode={"pp": 1, "tp": 1})
def test_heads_are_joined(disagg: Disagg) -> None:
    """A rank of decode gets the heads of each rank of prefill."""
    disagg.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7], 5)
    settle(disagg)


@pytest.mark.pprank(device="sim")  # on cpu SGLang does not load key heads that ranks share
class TestHeadsAreShared:
    """There are half as many key heads as ranks: two ranks have the same one."""

    @pytest.mark.pprank(prefill={"pp": 1, "tp": 4}, decode={"pp": 1, "tp": 1})
    def test_by_ranks_of_prefill(self, disagg: Disagg) -> None:
        disagg.generate([1, CHUNK + 1], 5)
        settle(disagg)

    @pytest.mark.pprank(
        prefill={"pp": 1, "tp": 1},
        decode={"pp": 1, "tp": 4},
        known_bug="decode-ranks-get-another-key-head",
    )
    def test_by_ranks_of_decode(self, disagg: Disagg) -> None:
        disagg.generate([1, CHUNK + 1], 5)
        settle(disagg)


# late metadata: the known bug decode-stages-differ-by-late-metadata
@pytest.mark.pprank(prefill=2, decode=2, tp=2, perturb="-metadata")
def test_both_roles_have_stages_of_two_ranks(disagg: Disagg) -> None:
    disagg.generate([1, CHUNK + 1, 3 * CHUNK - 7], 5)
    settle(disagg)
