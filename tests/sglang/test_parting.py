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
