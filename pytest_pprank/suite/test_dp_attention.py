"""Stages whose ranks share the requests (DP attention), with a pipeline and between roles.

Each DP rank schedules its own requests, and meets the others in each iteration and each MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of, settle

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

CHUNK = 64

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)


@pytest.mark.pprank(pp=2, tp=2, dp=2)
@pytest.mark.sglang(max_total_tokens=4 * CHUNK, schedule_conservativeness=0.05)
class TestPipeline:
    def test_requests_of_many_lengths(self, engine: Engine) -> None:
        results = engine.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7], logprobs=True)
        assert [result.dp_rank for result in results] == [0, 1, 0, 1, 0]
        assert len(results[-1].extends) >= 3
        settle(engine)

    @pytest.mark.parametrize("dp_rank", [0, 1])
    def test_one_request_alone(self, engine: Engine, pprank: Pprank, dp_rank: int) -> None:
        """The other DP rank takes part in each forward with an empty batch."""
        engine.submit(CHUNK + 9, 4, dp_rank=dp_rank)
        settle(engine)
        modes = {forward.mode for forward in engine.forwards}
        assert modes == ({"extend", "decode"} if pprank.dp_rank == dp_rank else {"idle"})

    def test_all_on_one_dp_rank(self, engine: Engine) -> None:
        for length in (3, CHUNK + 5, 20, 31):
            engine.submit(length, 5, dp_rank=1)
        engine.step(4)
        held = {view.dp_rank: view.rids for view in engine.stages if view.stage == 0}
        assert held[1] == {*engine.results}
        assert not held[0]
        settle(engine)

    def test_prefix_is_cached_where_it_was_computed(self, engine: Engine) -> None:
        prompt = [*range(1000, 1000 + CHUNK + 9)]
        rids = [engine.submit(prompt, 3, dp_rank=1)]
        engine.drain()
        rids += [engine.submit([*prompt, 7], 3, dp_rank=dp_rank) for dp_rank in (0, 1)]
        settle(engine)
        assert [engine.results[rid].cached_tokens for rid in rids] == [0, 0, CHUNK + 9]

    @pytest.mark.pprank(
        known_bug=("aborted-prompt-is-computed-to-its-end", "abort-misses-other-microbatch-slots")
    )
    def test_aborts_of_requests_in_any_state(self, engine: Engine) -> None:
        """An abort is sent to the first DP rank, which tells the others."""
        rids = [engine.submit(20 + index, 16, dp_rank=index % 2) for index in range(3)]
        rids.append(engine.submit(3 * CHUNK, 4, dp_rank=1))
        engine.run_until(lambda: engine.chunks_done(rids[-1]) >= 2)
        rids.append(engine.submit(33, 4, dp_rank=1))
        aborted = (rids[0], rids[-2], rids[-1])
        for rid in aborted:
            engine.abort(rid)
        settle(engine, *aborted)
        ends = [end_of(engine.results[rid]) for rid in rids]
        assert ends == ["abort", "length", "length", "abort", "abort"]

    def test_requests_that_are_retracted_on_one_dp_rank(self, engine: Engine) -> None:
        for index in range(4):
            engine.submit(50 + index, 20, dp_rank=1)
        other = engine.submit(20, 20, dp_rank=0)
        settle(engine)
        assert any(result.retractions for result in engine.results.values())
        assert not engine.results[other].retractions

    def test_control_request_reaches_all(self, engine: Engine, pprank: Pprank) -> None:
        engine.generate([20, 30], 2)
        flush = engine.control("flush_cache", wait=True)
        assert flush.handled == {"pp": set(range(pprank.world_size))}
        assert {rank: answer.success for rank, answer in flush.dp_answers["pp"].items()} == {
            0: True,
            1: True,
        }
        settle(engine)


@pytest.mark.pprank(pp=1, tp=2, dp=2)
@pytest.mark.sglang(scheduler_recv_interval=4)
@pytest.mark.skipif(is_older_than("0.5.16"), reason="SGLang refuses it with DP attention")
def test_requests_are_received_seldom(engine: Engine) -> None:
    """All DP ranks receive in the same iterations, whatever each of them runs (PR 30457)."""
    engine.submit(20, 12, dp_rank=0)
    engine.step(6)
    engine.submit(30, 5, dp_rank=1)
    engine.step(3)
    engine.submit(CHUNK + 3, 5, dp_rank=0)
    settle(engine)


@pytest.mark.pprank(prefill={"pp": 2, "tp": 1}, decode={"pp": 1, "tp": 2, "dp": 2})
class TestDecode:
    def test_requests_of_many_lengths(self, disagg: Disagg) -> None:
        results = disagg.generate([1, 31, CHUNK + 1, 3 * CHUNK - 7], 5)
        assert [result.dp_rank for result in results] == [0, 1, 0, 1]
        settle(disagg)

    @pytest.mark.pprank(known_bug="decode-frees-what-an-aborted-transfer-still-writes")
    def test_abort_while_transferring(self, disagg: Disagg) -> None:
        slow = disagg.slow_transfer(stages=[0, 1])
        aborted, other = (disagg.submit(30, dp_rank=1) for _ in range(2))
        disagg.abort_when(aborted, "transferring", at="prefill")
        slow.release()
        settle(disagg, aborted)
        assert end_of(disagg.results[other]) == "length"


@pytest.mark.pprank(
    prefill={"pp": 1, "tp": 2, "dp": 2, "ep": 2}, decode={"pp": 1, "tp": 2, "dp": 2, "ep": 2}
)
class TestBothRoles:
    """They share requests, and experts."""

    def test_room_says_where_the_kv_is(self, disagg: Disagg) -> None:
        """Decode learns from its number which DP rank of prefill has the KV."""
        disagg.generate([1, CHUNK + 1, 3 * CHUNK - 7], 5)
        settle(disagg)

    @pytest.mark.skipif(
        is_older_than("0.5.16"),
        reason="prefill refuses a request whose room says another DP rank (req_has_disagg_...)",
    )
    def test_request_says_where_the_kv_is(self, disagg: Disagg) -> None:
        rids = [disagg.submit(40 + n, 5, dp_rank={"prefill": n, "decode": 1 - n}) for n in (0, 1)]
        settle(disagg)
        assert [disagg.prefill.results[rid].dp_rank for rid in rids] == [0, 1]
        assert [disagg.results[rid].dp_rank for rid in rids] == [1, 0]


@pytest.mark.sglang(load_balance_method="round_robin")
class TestRoomsDoNotSayWhereTheKvIs:
    """Decode learns from the request which DP rank of prefill has its KV, or asks for it."""

    @pytest.mark.pprank(prefill={"pp": 1, "tp": 2, "dp": 2}, decode={"pp": 1, "tp": 1}, fresh=True)
    def test_request_says_it_and_is_the_first(self, disagg: Disagg) -> None:
        """Decode has not yet asked how many DP ranks prefill has (PR 22990)."""
        rids = [disagg.submit(40 + n, 5, dp_rank={"prefill": n}) for n in (1, 0)]
        disagg.drain()
        assert [disagg.prefill.results[rid].dp_rank for rid in rids] == [1, 0]
        disagg.generate([1, CHUNK + 1, 3 * CHUNK - 7], 5)  # these do not say it
        settle(disagg)

    @pytest.mark.pprank(prefill=1, decode=1, tp=1)
    def test_one_dp_rank(self, disagg: Disagg) -> None:
        """Prefill need not say which of its DP ranks it is, and does not (PR 19305)."""
        disagg.generate([1, CHUNK + 1], 5)
        settle(disagg)


@pytest.mark.pprank(prefill={"pp": 2, "tp": 2, "dp": 2}, decode={"pp": 1, "tp": 1})
def test_prefill_has_a_pipeline(disagg: Disagg) -> None:
    disagg.generate([1, CHUNK + 1, 3 * CHUNK - 7], 5)
    settle(disagg)


# late metadata: the known bug decode-stages-differ-by-late-metadata
@pytest.mark.pprank(
    prefill={"pp": 2, "tp": 1}, decode={"pp": 2, "tp": 2, "dp": 2}, perturb="-metadata"
)
def test_decode_has_a_pipeline(disagg: Disagg) -> None:
    disagg.generate([1, CHUNK + 1, 3 * CHUNK - 7], 5)
    settle(disagg)
