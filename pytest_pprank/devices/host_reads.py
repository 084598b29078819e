"""Reads values of tensors without affecting the program under test, if the device allows it."""

from __future__ import annotations

import torch

from pytest_pprank.devices import sim

_FREE = ("cpu", sim.NAME)


def is_host_readable(device: torch.device | str) -> bool:
    """Return whether values on this kind of device can be read without a copy or a wait."""
    return torch.device(device).type in _FREE


def host_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a host tensor with the values that the current stream would read; do not write to it.

    On cpu it is the tensor itself, on sim the tensor's memory: nothing is recorded or waited for.
    From other devices it is a copy, for which the host waits.
    """
    if tensor.is_cpu:
        return tensor
    if sim.in_use():
        from pytest_pprank.devices.sim import memory, state

        if memory.is_sim(tensor):
            return state.host_values(tensor)
    return tensor.cpu()
