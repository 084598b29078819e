"""Connect the stages of a pipeline over NCCL before their event loops run.

NCCL connects two ranks when they first send to each other, and the sender blocks until its peer has
called recv. SGLang's loop receives in the next iteration what was sent in this one: who runs the
loops iteration by iteration, and looks at all stages in between, would wait for ever.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank


def connect_stages(pprank: Pprank) -> None:
    """Send a number from each stage to the next one. A meeting of all stages of the pipeline."""
    import torch
    import torch.distributed as dist

    pipeline = need(import_module("sglang.srt.distributed"), "get_pp_group")()
    ranks, group = tuple(pipeline.ranks), pipeline.device_group
    if len(ranks) < 2:
        return
    number = torch.zeros(1, device=pprank.device)
    own = dist.get_rank()
    for source, to in zip(ranks, (*ranks[1:], ranks[0]), strict=True):
        if own == source:
            dist.send(number, to, group=group)
        elif own == to:
            dist.recv(number, source, group=group)
    torch.get_device_module(pprank.device).synchronize()
