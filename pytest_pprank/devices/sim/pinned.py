"""Pinned host memory: ordinary memory that is registered as pinned."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch

_pinned: dict[int, weakref.ref[Any]] = {}
"""The living pinned storages, by address."""


def pinned_empty(shape: Iterable[int], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised tensor in pinned memory of its own."""
    sizes = tuple(int(n) for n in shape)
    nbytes = math.prod(sizes) * dtype.itemsize
    memory = memoryview(bytearray(max(nbytes, 8)))
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    address = whole.data_ptr()
    _pinned[address] = weakref.ref(memory, lambda _: _pinned.pop(address, None))
    return whole[:nbytes].view(dtype).view(sizes)


def is_pinned(tensor: torch.Tensor) -> bool:
    """Return whether a CPU tensor is in pinned memory."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.untyped_storage().data_ptr() in _pinned
    )


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a CPU tensor in pinned memory."""
    target = pinned_empty(tensor.shape, tensor.dtype)
    torch._C.TensorBase.copy_(target, tensor)  # unchecked: nothing else refers to it yet
    return target
