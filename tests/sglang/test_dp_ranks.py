"""DP ranks: who gets which request, what views say, and DP ranks or their ranks that part ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.series import StagesDiffer

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

# on sim, what a test itself changes on the device has no order with the event loop
pytestmark = [
    pytest.mark.pprank(pp=2, tp=2, dp=2, device="cpu"),
    # SGLang gives each DP rank its part of both: 32 tokens, one request
    pytest.mark.sglang(chunked_prefill_size=64, max_running_requests=2),
]


def test_places_of_ranks(pprank: Pprank, engine: Engine) -> None:
    stage, dp_rank = divmod(pprank.rank, 2)
    assert pprank.coordinates._asdict() == {"pp": stage, "tp": dp_rank, "dp": dp_rank, "ep": 0}
    assert (pprank.dp_rank, pprank.dp_size, pprank.attention_tp) == (dp_rank, 2, (0, 1))
    assert pprank.takes_requests == (stage == 0)
    place = f"stage {stage} of 2, tp {dp_rank} of 2, dp {dp_rank} of 2"
    assert pprank.place == f"rank {pprank.rank}, {place}"
    assert place in repr(pprank)
    engine.generate([20], 2)
    assert [view.place for view in engine.stages] == [
        f"stage {pp}, tp {dp}, dp {dp}" for pp in (0, 1) for dp in (0, 1)
    ]


def test_requests_go_to_each_dp_rank_in_turn(engine: Engine) -> None:
    rids = [engine.submit(20) for _ in range(3)]
    rids.insert(2, engine.submit(20, dp_rank=1))
    assert [engine.results[rid].dp_rank for rid in rids] == [0, 1, 1, 0]
    engine.step(3)
    held = {view.dp_rank: sorted(view.rids) for view in engine.stages if view.stage == 0}
    assert held == {0: [rids[0], rids[3]], 1: [rids[1], rids[2]]}
    engine.drain()


@pytest.mark.parametrize("wrong", [2, -1, True, {"pp": 2}, {"decode": 0}, {}])
def test_dp_rank_that_is_not_there(engine: Engine, wrong: object) -> None:
    with pytest.raises(UsageError, match=r"engine.submit: dp_rank=.*; allowed: 0 to 1"):
        engine.submit(20, dp_rank=wrong)  # type: ignore[arg-type]


def test_answers_of_each_dp_rank(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "note_call", lambda: None, raising=False)
    rpc = engine.control("rpc", method="note_call")
    state = engine.control("get_internal_state", wait=True)
    assert {*state.dp_answers["pp"]} == {0, 1}
    assert state.answer is state.dp_answers["pp"][0]
    rpc.wait()
    assert rpc.handled == {"pp": {0, 1, 2, 3}}
    assert {*rpc.dp_answers["pp"]} == {0, 1}


def test_stages_of_a_dp_rank_are_compared(engine: Engine, pprank: Pprank) -> None:
    """The second stage of DP rank 1 runs two requests in another order."""
    _, first, second = (engine.submit(20, 9, dp_rank=1) for _ in range(3))
    engine.step(4)
    if pprank.rank == 3:
        engine.scheduler.waiting_queue.reverse()
    with pytest.raises(StagesDiffer) as error:
        engine.drain()
    lines = str(error.value).splitlines()
    assert lines[0] == "the stages did not run the same batches in the same order:"
    assert lines[1].startswith("  stage 0, tp 1, dp 1: iteration ")
    assert lines[1].endswith(f"extend of {first} (tokens 0-20)")
    assert lines[2].startswith("  stage 1, tp 1, dp 1: ")
    assert len(lines) == 3
    assert second in "".join(lines)
    engine._driver.abandon("a stage runs another order")


@pytest.mark.pprank(pp=1, tp=4, dp=2)
def test_ranks_of_a_dp_rank_are_compared(engine: Engine, pprank: Pprank) -> None:
    """Another DP rank may have other requests, and other ranks of the same one may not."""
    engine.submit(30, 12, dp_rank=1)
    lost = engine.submit(20, 2, dp_rank=1)
    engine.step(2)
    assert [view.place for view in engine.stages] == [
        "stage 0, tp 0, dp 0",
        "stage 0, tp 2, dp 1",
    ]
    if pprank.rank == 3:
        engine.scheduler.waiting_queue.clear()
    with pytest.raises(StagesDiffer) as error:
        engine.step()
    assert str(error.value).splitlines() == [
        "the ranks of a stage differ in their waiting queue:",
        f"  stage 0, tp 2, dp 1: ('{lost}',)",
        "  stage 0, tp 3, dp 1: nothing",
    ]
    pprank.spoil("a rank has lost a request")
