"""Looking at tensors without being a part of the program, where the device can do that."""

from __future__ import annotations

import torch

from pytest_pprank.devices import sim

_FREE = ("cpu", sim.NAME)


def costs_nothing(device: torch.device | str) -> bool:
    """Say whether values on this kind of device can be looked at and nothing waits for it."""
    return torch.device(device).type in _FREE


def host_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a host tensor with what the current stream would read; not to be written to.

    On cpu the tensor itself, on sim its memory: nothing is recorded and nothing waits. From other
    devices it is a copy, for which the host waits.
    """
    if tensor.is_cpu:
        return tensor
    if sim.in_use():
        from pytest_pprank.devices.sim import memory, state

        if memory.is_sim(tensor):
            return state.host_values(tensor)
    return tensor.cpu()
