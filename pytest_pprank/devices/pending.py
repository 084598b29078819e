"""Copies between host and device that are still under way, on any kind of device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pytest_pprank.devices import sim


def pending_copies(tensors: Sequence[tuple[str, torch.Tensor]] | None) -> list[str]:
    """Describe copies that may still be under way.

    `tensors` (name, tensor): report copies into these, and copies out of those that are on the
    host; None reports all copies. On a GPU only the current stream can be asked, and not for a
    single tensor. On cpu, where host and device are one, there are none.
    """
    if sim.in_use():
        from pytest_pprank.devices.sim.state import in_flight

        return in_flight(tensors)
    if not torch.cuda.is_initialized() or torch.cuda.current_stream().query():
        return []
    return [f"{torch.cuda.current_stream()} has not yet done all that is enqueued on it"]


def unordered_writes(tensor: torch.Tensor) -> list[str]:
    """Describe writes to a tensor that are not ordered before the current stream.

    Known on device sim only; empty elsewhere.
    """
    if tensor.is_cpu or not sim.in_use():
        return []
    from pytest_pprank.devices.sim import state
    from pytest_pprank.devices.sim.memory import is_sim

    return state.unordered_writes(tensor) if is_sim(tensor) else []
