"""Connect the stages of a pipeline over NCCL before their event loops run.

NCCL connects two ranks when they first send to each other, and the sender blocks until its peer has
called recv. SGLang's loop receives in the next iteration what was sent in this one: who runs the
loops iteration by iteration, and looks at all stages in between, would wait for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler


def connect_stages(scheduler: Scheduler, device: str) -> None:
    """Send a number from each stage to the next one. A meeting of all stages of the pipeline."""
    import torch
    import torch.distributed as dist

    pipeline = need(scheduler, "pp_group")
    ranks, group = tuple(pipeline.ranks), pipeline.device_group
    if len(ranks) < 2:
        return
    number = torch.zeros(1, device=device)
    own = dist.get_rank()
    for source, to in zip(ranks, (*ranks[1:], ranks[0]), strict=True):
        if own == source:
            dist.send(number, to, group=group)
        elif own == to:
            dist.recv(number, source, group=group)
    torch.get_device_module(device).synchronize()
