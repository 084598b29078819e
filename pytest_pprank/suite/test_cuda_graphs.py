"""Decode from CUDA graphs, which is how servers on GPUs run. Needs GPUs.

A graph reads its inputs from buffers that stay where they were when it was captured. So what fills
them for one microbatch must not meet the replay for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import settle

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

CHUNK = 64
# Six requests in two microbatches need graphs of one to four requests, some of them padded.
LARGEST = {"cuda_graph_max_bs" if is_older_than("0.5.14") else "cuda_graph_max_bs_decode": 4}
PREFILL = f"disable_{'piecewise' if is_older_than('0.5.14') else 'prefill'}_cuda_graph"

pytestmark = [
    pytest.mark.pprank(device="cuda"),
    pytest.mark.sglang(
        chunked_prefill_size=CHUNK, disable_cuda_graph=False, **LARGEST, **{PREFILL: True}
    ),
]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that tells how many graphs this rank has replayed in this test."""
    import torch

    replayed: list[object] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replayed.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return lambda: len(replayed)


class TestEngine:
    def test_requests_of_many_lengths(self, engine: Engine, replays: Callable[[], int]) -> None:
        engine.generate([1, 31, CHUNK, CHUNK + 1, 3 * CHUNK - 7, 9], max_new_tokens=8)
        settle(engine)
        assert replays() >= 7, "each token but a request's first comes from a graph"

    def test_requests_that_come_and_go(self, engine: Engine, replays: Callable[[], int]) -> None:
        """Batches of each size follow each other in the same buffers."""
        for index in range(8):
            engine.submit(10 + 7 * index, 2 + 3 * (index % 4))
            engine.step(1)
        aborted = engine.submit(20, 60)
        engine.run_until(lambda: engine.results[aborted].token_ids)
        engine.abort(aborted)
        settle(engine, aborted)
        assert replays()

    def test_more_requests_than_a_graph_has_room_for(
        self, engine: Engine, replays: Callable[[], int]
    ) -> None:
        """Larger batches run without a graph, and from one again when they have shrunk."""
        for index in range(8):
            engine.submit(8 + index, 4 + 2 * index)
        settle(engine)
        assert replays()


@pytest.mark.pprank(prefill=1, decode=1)
def test_decode_behind_prefill(disagg: Disagg, pprank: Pprank, replays: Callable[[], int]) -> None:
    disagg.generate([1, 31, CHUNK + 1, 9], max_new_tokens=6)
    settle(disagg)
    assert bool(replays()) == (pprank.role == "decode")
