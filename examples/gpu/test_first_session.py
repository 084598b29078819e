"""A first session on a machine with two GPUs: pytest -p pytest_pprank examples/gpu

Without two GPUs these tests are skipped.
"""

from __future__ import annotations

import pytest

from pytest_pprank import Engine, Pprank, assert_kv_balanced, assert_tokens_equal_reference

pytestmark = pytest.mark.pprank(pp=2, device="cuda")


@pytest.mark.usefixtures("process_group")
def test_ranks_have_a_gpu_each(pprank: Pprank) -> None:
    """NCCL adds up one number of each rank. A rank that does not come is named after the grace."""
    import torch
    import torch.distributed as dist

    value = torch.ones(1, device=pprank.device)
    dist.all_reduce(value)
    assert value.item() == pprank.world_size == torch.cuda.device_count()


def test_tokens(engine: Engine) -> None:
    """SGLang's own kernels give the tokens of the reference, within what float16 can tell."""
    for result in engine.generate([5, 300, 40], max_new_tokens=6):
        assert_tokens_equal_reference(result)
    assert_kv_balanced(engine.scheduler)
