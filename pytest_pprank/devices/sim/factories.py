"""Kernels of the device that are not just CPU kernels: memory, views, copies, `item`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pytest_pprank.devices.sim import NAME, copies, pinned, tracker
from pytest_pprank.devices.sim.kernels import give_memory, on_host
from pytest_pprank.devices.sim.memory import host_alias, is_sim, operand, sim_tensor
from pytest_pprank.devices.sim.plans import overload
from pytest_pprank.devices.sim.streams import current_stream, device_index, host, lock

_VIEWS = (
    "as_strided",
    "as_strided_",
    "view",
    "view.dtype",
    "_reshape_alias",
    "unfold",
    "set_",
    "set_.source_Storage_storage_offset",
    "set_.source_Tensor",
    "set_.source_Storage",
)
_resize = torch.ops.aten.resize_.default


def empty(
    size: Sequence[int], *, dtype: Any = None, device: Any = None, memory_format: Any = None,
    **_: Any,
) -> torch.Tensor:  # fmt: skip
    """aten::empty.memory_format"""
    base = torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format)
    return sim_tensor(base, device_index(device))


def empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> torch.Tensor:
    """aten::empty_strided"""
    base = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
    return sim_tensor(base, device_index(device))


def resize_(tensor: torch.Tensor, size: Sequence[int], *, memory_format: Any = None) -> Any:
    """aten::resize_; keeps the contents."""
    meta = torch.empty(tuple(size), dtype=tensor.dtype, device="meta")
    end = (tensor.storage_offset() + meta.numel()) * tensor.element_size()
    if end > tensor.untyped_storage().nbytes():
        base = torch.empty(meta.numel(), dtype=tensor.dtype)
        old = host_alias(tensor).reshape(-1)
        base[: old.numel()] = old
        give_memory(tensor, base)
    on_host(_resize, tensor, size, memory_format=memory_format)
    return tensor


def copy_(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
    """aten::copy_"""
    return copies.copy(target, source, non_blocking)


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    """aten::_copy_from"""
    return copies.copy(target, source, non_blocking)


def foreach_copy_(
    targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], non_blocking: bool = False
) -> None:
    """aten::_foreach_copy_; as in torch, host tensors are moved one by one, without a warning."""
    for target, source in zip(targets, sources, strict=True):
        copies.copy(target, source, non_blocking)


def to_copy(
    source: torch.Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    non_blocking: bool = False,
    memory_format: Any = None,
    **_: Any,
) -> torch.Tensor:
    """aten::_to_copy, from or to the device."""
    dtype = dtype or source.dtype
    where = torch.device(device) if device is not None else source.device
    shape, stride = source.shape, _strides(source, dtype, memory_format)
    if where.type == "cpu" and non_blocking and is_sim(source) and _dense(shape, stride):
        # torch's "pin_out": a non-blocking copy to the host goes to pinned memory
        target = pinned.pinned_empty(shape, dtype)
    elif where.type == NAME:
        target = empty_strided(shape, stride, dtype=dtype, device=where)
    else:
        target = torch.empty_strided(shape, stride, dtype=dtype, device=where)
    if where.type not in ("cpu", NAME):
        return target  # meta
    return copies.copy(target, source, non_blocking)


def _strides(source: torch.Tensor, dtype: torch.dtype, memory_format: Any) -> tuple[int, ...]:
    if memory_format in (None, torch.preserve_format):
        if source.is_contiguous():
            return source.stride()  # type: ignore[no-any-return]
        meta = torch.empty_strided(source.shape, source.stride(), dtype=dtype, device="meta")
        return torch.empty_like(meta).stride()  # type: ignore[no-any-return]
    meta = torch.empty(source.shape, dtype=dtype, device="meta", memory_format=memory_format)
    return meta.stride()  # type: ignore[no-any-return]


def _dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def local_scalar_dense(tensor: torch.Tensor) -> Any:
    """aten::_local_scalar_dense (`item`): waits for the current stream."""
    block, alias = operand(tensor)
    stream = current_stream(block.device)
    with lock:
        tracker.touch(block, tensor, False, tracker.begin("item", stream))
        host.sees(stream.clock)
    return torch._C.TensorBase.item(alias)


def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:  # noqa: ARG001
    """aten::is_pinned of a CPU tensor."""
    return pinned.is_pinned(tensor)


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:  # noqa: ARG001
    """aten::_pin_memory of a CPU tensor."""
    return pinned.pin(tensor)


def _view_kernel(name: str) -> Callable[..., Any]:
    return partial(on_host, overload(f"aten::{name}"))


DEVICE_KERNELS: dict[str, Callable[..., Any]] = {
    "empty.memory_format": empty,
    "empty_strided": empty_strided,
    "resize_": resize_,
    "copy_": copy_,
    "_copy_from": copy_from,
    "_to_copy": to_copy,
    "_foreach_copy_": foreach_copy_,
    "_local_scalar_dense": local_scalar_dense,
    **{name: _view_kernel(name) for name in _VIEWS},
}
HOST_KERNELS: dict[str, Callable[..., Any]] = {"is_pinned": is_pinned, "_pin_memory": pin_memory}
