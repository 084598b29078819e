"""Memory of the device: host memory under another device type, one `Block` per storage.

A CPU tensor is exported as a DLPack capsule; the capsule's device is overwritten, and the capsule
is imported again. The result is a plain torch.Tensor on ``sim:K`` with a real storage. The storage
keeps the CPU tensor alive, and torch keeps the Python object of a tensor that C++ refers to. So
when that Python object dies, the storage was freed.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from typing import Any

import torch

from pytest_pprank.devices.sim import NAME
from pytest_pprank.devices.sim.allocator import FREED, account, check_room, freed
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import Stream, current_stream

_CPU, _EXTERNAL = 1, 12  # kDLCPU, kDLExtDev in dlpack.h
_PLAIN = frozenset(
    (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    )
)
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_export = torch._C._to_dlpack
_import = torch._C._from_dlpack
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Capsule(ctypes.Structure):
    """The first fields of DLManagedTensor in dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
    )


_capsule_at = _Capsule.from_address
_as_strided = torch._C.TensorBase.as_strided


class Block:
    """The memory of one storage, and records of its use.

    `base()`: the CPU tensor below it. `address`: of the storage's first byte. `ptr`, `shape`,
    `stride` and `dtype` are those of the device tensor made of it; a tensor with the same values is
    the same memory. `log`, `last`, `version` and `clean` belong to the tracker. `races`: unordered
    writes (see races). `pending`: copies that have not been performed.
    """

    __slots__ = (
        "address", "allocator_stream", "base", "clean", "device", "dtype", "key", "last", "log",
        "nbytes", "pending", "ptr", "races", "recorded", "shape", "stride", "version",
    )  # fmt: skip

    def __init__(self, base: torch.Tensor, tensor: torch.Tensor, stream: Stream) -> None:
        storage = tensor.untyped_storage()
        self.base: Any = _Base(base, _on_free)
        self.base.block = self
        self.key: int = storage._cdata
        self.address: int = storage.data_ptr()
        self.nbytes: int = storage.nbytes()
        self.ptr: int = tensor.data_ptr()
        self.shape, self.stride, self.dtype = tensor.shape, tensor.stride(), tensor.dtype
        self.device: int = stream.device_index
        self.allocator_stream = stream
        self.log: dict[Any, Any] = {}
        self.last = 0
        self.version = 0
        self.clean: dict[int, int] = {}
        self.pending: list[Any] = []
        self.races: list[Any] = []
        self.recorded: set[Stream] | None = None

    def start(self) -> int:
        """Return the offset of the block's first byte in the storage of its CPU tensor."""
        base = self.base()
        return int(base.storage_offset() * base.element_size())


blocks: dict[int, Block] = {}
"""The blocks in use, by the address of their StorageImpl."""

_freed: deque[Block] = deque()  # filled at any time, by any thread


class _Base(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a block's CPU tensor, which dies together with the device's storage."""

    __slots__ = ("block",)
    block: Block


def _on_free(base: Any, note: Any = _freed.append) -> None:  # also called at interpreter exit
    note(base.block)


def sim_tensor(base: torch.Tensor, index: int) -> torch.Tensor:
    """Return a tensor on ``sim:index`` over the memory of the CPU tensor `base`."""
    if _freed:
        collect()
    if base.requires_grad:
        base = base.detach()
    if base.dtype not in _PLAIN:  # fp8 and others that DLPack does not support
        width = _INTEGER[base.element_size()]
        return sim_tensor(base.view(width), index).view(base.dtype)
    if settings.memory_limit:
        check_room(base.nbytes, index)
    capsule = _export(base)
    address = _pointer(capsule, b"dltensor")
    header = _capsule_at(address)
    header.device_type, header.device_id = _EXTERNAL, index
    tensor = _import(capsule)
    block = Block(base, tensor, current_stream(index))
    log = account(block.nbytes, block.allocator_stream)
    if log is not None:
        block.log, block.last, block.version = log, FREED, 1
    blocks[block.key] = block
    return tensor


def collect() -> None:
    """Process the storages that were freed."""
    while _freed:
        block = _freed.popleft()
        if blocks.get(block.key) is block:
            del blocks[block.key]
        freed(block.nbytes, block.allocator_stream, block.log, block.recorded)


def block_of(tensor: torch.Tensor) -> Block:
    """Return the block of a device tensor."""
    return _in_use(tensor) or _shared(tensor) or _adopted(tensor)


def operand(tensor: torch.Tensor) -> tuple[Block, torch.Tensor]:
    """Return a device tensor's block, and a CPU tensor over the same memory; waits for nothing.

    The CPU tensor is ``block.base()`` itself if the device tensor is the one made of it.
    """
    block = _in_use(tensor) or _shared(tensor) or _adopted(tensor)
    if (
        block.ptr == tensor.data_ptr()
        and block.stride == tensor.stride()
        and block.shape == tensor.shape
        and block.dtype is tensor.dtype
    ):
        return block, block.base()
    return block, _view(block, tensor)


def host_alias(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor over the memory of a device tensor; waits for nothing."""
    return operand(tensor)[1]


def is_sim(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is on the simulated device."""
    return not tensor.is_cpu and tensor.device.type == NAME


def byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte that a strided tensor covers, and the one after its last."""
    width = tensor.element_size()
    start = tensor.storage_offset() * width
    if tensor.is_contiguous():
        size = tensor.nbytes
        return (start, start + size) if size else (0, 0)
    if not tensor.numel():
        return 0, 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * width


def _view(block: Block, tensor: torch.Tensor) -> torch.Tensor:
    base, offset = block.base(), tensor.storage_offset()
    if tensor.dtype is base.dtype:  # bases need no gradients
        return _as_strided(base, tensor.shape, tensor.stride(), base.storage_offset() + offset)
    with torch.no_grad():
        width = tensor.element_size()
        start = base.storage_offset() * base.element_size() // width + offset
        plain = torch.empty(0, dtype=tensor.dtype)
        return plain.set_(base.untyped_storage(), start, tensor.shape, tensor.stride())


def _in_use(tensor: torch.Tensor) -> Block | None:
    """Return the block of a tensor's storage; None if this module did not make that storage.

    Torch may make a storage where a freed one was, whose block is still there: its CPU tensor is
    dead, or kept by a copy that is under way.
    """
    storage = tensor.untyped_storage()
    block = blocks.get(storage._cdata)
    if block is None or (block.address == storage.data_ptr() and block.base() is not None):
        return block
    return None


def _shared(tensor: torch.Tensor) -> Block | None:
    """Return the block whose memory torch has given a second storage, as when pickling a tensor."""
    start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    for block in [*blocks.values()] if size else ():
        if block.address == start and block.nbytes == size and block.base() is not None:
            return block
    return None


def _adopted(tensor: torch.Tensor) -> Block:
    """Make a block for a storage that torch itself created or resized."""
    size = tensor.untyped_storage().nbytes()
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        tensor.untyped_storage(), 0, (size,), (1,)
    )
    capsule = _export(whole)
    _capsule_at(_pointer(capsule, b"dltensor")).device_type = _CPU
    base = _import(capsule)
    block = Block(base, whole, current_stream(tensor.device.index))
    _adopted_bases[block.key] = base  # nothing else keeps it alive, and nothing reports its end
    blocks[block.key] = block
    return block


_adopted_bases: dict[int, torch.Tensor] = {}
