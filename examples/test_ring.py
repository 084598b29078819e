"""Plain torch code on several ranks: no SGLang needed.

pytest -p pytest_pprank --pp-size 2 examples/test_ring.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_ranks_agree

if TYPE_CHECKING:
    from pytest_pprank import Pprank


@pytest.mark.usefixtures("process_group")
def test_ring(pprank: Pprank) -> None:
    import torch
    import torch.distributed as dist

    mine = torch.full((4,), float(pprank.rank), device=pprank.device)
    received = torch.empty_like(mine)
    to, source = (pprank.rank + 1) % pprank.world_size, (pprank.rank - 1) % pprank.world_size
    operations = [dist.P2POp(dist.isend, mine, to), dist.P2POp(dist.irecv, received, source)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    assert received.tolist() == [float(source)] * 4


@pytest.mark.usefixtures("process_group")
def test_all_reduce(pprank: Pprank) -> None:
    import torch
    import torch.distributed as dist

    total = torch.tensor([pprank.rank + 1], device=pprank.device)
    dist.all_reduce(total)
    assert_ranks_agree(total, what="the sum")
    assert total.item() == pprank.world_size * (pprank.world_size + 1) // 2


@pytest.mark.pprank(pp=3)  # whatever --pp-size says
@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.usefixtures("process_group")
def test_sum_goes_round_three_stages(pprank: Pprank, dtype: str) -> None:
    import torch
    import torch.distributed as dist

    passing = torch.full((8,), pprank.rank + 1, dtype=getattr(torch, dtype), device=pprank.device)
    total = passing.clone()
    for _ in range(pprank.world_size - 1):
        received = torch.empty_like(passing)
        sent = dist.isend(passing, (pprank.rank + 1) % pprank.world_size)
        dist.recv(received, (pprank.rank - 1) % pprank.world_size)
        sent.wait()
        total, passing = total + received, received
    assert_ranks_agree(total, what="the sum")
    assert total.tolist() == [6] * 8
