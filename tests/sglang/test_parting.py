"""Ranks of a stage that part ways inside SGLang: who waits for whom is told at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run


@pytest.fixture(scope="module")
def run(inner: Callable[..., Run]) -> Run:
    return inner("parallel", "--pprank-lease", "off")


@pytest.mark.parametrize(
    ("test", "waits"),
    [
        ("test_dp_rank_without_requests_does_not_meet", r"all_gather_into_tensor \S+ .dp_attn.py"),
        ("test_dp_rank_that_drops_its_idle_batch", r"all_reduce \S+ .dp_attention.py"),
    ],
)
def test_deadlock_between_dp_ranks_is_told(run: Run, test: str, waits: str) -> None:
    failure = run.failure(f"{test}[pp2-tp2-dp2]")
    assert "hung: deadlock: ranks 0,1,2,3" in failure
    assert re.search(rf"rank 0 waits in {waits}.* for rank 1", failure)
    assert re.search(r"rank 1 waits in broadcast \S+ .request_receiver.py.* for rank 0", failure)


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize(
    ("test", "rank", "layer", "does"),
    [
        ("test_rank_that_drops_tokens", 3, 2, "leave out"),
        (
            "test_rank_that_numbers_its_experts_otherwise",
            1,
            0,
            "do not give what their weights make of",
        ),
    ],
)
def test_rank_whose_experts_are_wrong_is_named(
    run: Run, test: str, rank: int, layer: int, does: str, device: str
) -> None:
    failure = run.failure(f"{test}[{device}-pp2-tp2-ep2]")
    found = rf"experts: layer {layer}: this rank's experts 2 to 3 {does} \d+ of 40 tokens"
    assert re.search(rf"{found} .*\n  on rank {rank}\n", failure)
    ranks = re.findall(r"^  on ranks? ([\d,]+)", failure, re.MULTILINE)
    assert ranks[0] == str(rank)
