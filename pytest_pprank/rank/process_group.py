"""The default torch.distributed group of a worker group."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from pytest_pprank.rank.handle import Pprank


def default_group(pprank: Pprank) -> Iterator[ProcessGroup]:
    """Yield the default group; initialise it, and destroy it at the end, unless SGLang has it.

    Only a group that this function has initialised is destroyed.
    """
    import torch
    import torch.distributed as dist

    began = not dist.is_initialized()
    if began:
        cuda = pprank.device.startswith("cuda")
        if pprank.device.startswith("sim"):
            from pytest_pprank.devices.sim.module import install

            install()
        if pprank.device != "cpu":
            torch.get_device_module(pprank.device).set_device(pprank.device)
        if cuda:
            from pytest_pprank.devices.unstarted_cuda import check_answers

            check_answers(torch.device(pprank.device).index or 0)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method="env://",
            rank=pprank.rank,
            world_size=pprank.world_size,
            # the controller has the deadline; torch's timeout must only not expire earlier
            timeout=timedelta(hours=1),
        )
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    if began and dist.is_initialized():
        dist.destroy_process_group()
