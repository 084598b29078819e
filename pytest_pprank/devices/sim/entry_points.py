"""Changes to torch's Python code for features that a device without C++ code cannot provide."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from pytest_pprank.devices.sim import NAME, copies, memory
from pytest_pprank.devices.sim.streams import Stream, host
from pytest_pprank.devices.sim.untracked import untracked

_FACTORIES = (
    "tensor",
    "empty",
    "zeros",
    "ones",
    "full",
    "empty_like",
    "zeros_like",
    "ones_like",
    "arange",
    "full_like",
    "empty_strided",
)
_READS = ("tolist", "numpy", "item", "__array__", "__bool__", "__int__", "__float__", "__index__")
_WRITES = ("copy_", "fill_", "zero_", "__setitem__", "add_", "sub_", "mul_", "random_")


def install() -> None:
    """Apply the changes in this process."""
    _wrap_generator()
    _wrap_storages()
    _wrap_pinning_factories()
    for name in _READS:
        _guard(name, write=False)
    for name in _WRITES:
        _guard(name, write=True)
    _wrap_record_stream()
    _wrap_repr()
    _wrap_executors()


def _guard(name: str, *, write: bool) -> None:
    """Check the host's accesses through a method against copies in flight."""
    original = getattr(torch.Tensor, name)
    hosts, what = copies._hosts, f"Tensor.{name}"

    @functools.wraps(original)
    def guarded(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hosts and self.is_cpu:
            copies.host_access(self, write=write, what=what)
        return original(self, *args, **kwargs)

    setattr(torch.Tensor, name, guarded)


def _wrap_record_stream() -> None:
    original = torch.Tensor.record_stream

    @functools.wraps(original)
    def record_stream(self: torch.Tensor, stream: Any) -> None:
        if not isinstance(stream, Stream):
            return original(self, stream)  # type: ignore[no-any-return]
        block = memory.block_of(self)
        if stream != block.allocator_stream:
            block.recorded = {*(block.recorded or ()), stream}
        return None

    torch.Tensor.record_stream = record_stream


def _wrap_executors() -> None:
    """Let a task of a thread pool know what the thread that submitted it had waited for."""
    original: Callable[..., Future[object]] = ThreadPoolExecutor.submit

    @functools.wraps(original)
    def submit(
        self: ThreadPoolExecutor, fn: Callable[..., object], /, *args: object, **kwargs: object
    ) -> Future[object]:
        known = host.of_this_thread({})

        @functools.wraps(fn)
        def informed(*args: object, **kwargs: object) -> object:
            host.told(known)
            return fn(*args, **kwargs)

        return original(self, informed, *args, **kwargs)

    setattr(ThreadPoolExecutor, "submit", submit)  # noqa: B010  (mypy: its type has parameters)


def _wrap_repr() -> None:
    """Make ``repr`` untracked: a debugger or pytest's traceback must not affect the program."""
    original: Any = torch.Tensor.__repr__

    @functools.wraps(original)
    def shown(self: torch.Tensor, **kwargs: Any) -> str:
        if self.is_cpu:
            return str(original(self, **kwargs))
        with untracked():
            return str(original(self, **kwargs))

    torch.Tensor.__repr__ = shown


def _wrap_generator() -> None:
    """Return CPU generators for the device: a device in Python has no generator of its own."""
    original: Any = torch.Generator

    class _Meta(type(original)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return type.__instancecheck__(original, instance)

    class Generator(original, metaclass=_Meta):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            return original("cpu" if torch.device(device).type == NAME else device)

    torch.Generator = Generator


def _wrap_storages() -> None:
    """Create, clone and copy storages as tensors: the device has no C++ allocator."""
    clone = torch.storage._StorageBase.clone
    new = torch.UntypedStorage.__new__
    copy_ = torch.UntypedStorage.copy_

    def as_bytes(storage: Any) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def sim_clone(self: Any) -> Any:
        if self.device.type != NAME:
            return clone(self)
        return as_bytes(self).clone().untyped_storage()

    def sim_new(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != NAME:
            given = {} if device is None else {"device": device}
            return new(cls, *args, **given, **kwargs)
        size = args[0] if args and isinstance(args[0], int) else len(args[0]) if args else 0
        return torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()

    def sim_copy_(self: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        if NAME not in (self.device.type, source.device.type):
            return copy_(self, source, *args, **kwargs)
        as_bytes(self).copy_(as_bytes(source))
        return self

    torch.storage._StorageBase.clone = sim_clone
    torch.UntypedStorage.__new__ = staticmethod(sim_new)
    torch.UntypedStorage.copy_ = sim_copy_


def _wrap_pinning_factories() -> None:
    """Pin after creation: a device in Python has no allocator of pinned memory."""
    import torch.utils._device as device_mode

    # fill its cached set of constructors, for `with torch.device(...)`, before they are replaced
    device_mode._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _pinning(getattr(torch, name)))


def _pinning(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if not kwargs or not kwargs.pop("pin_memory", False):
            return original(*args, **kwargs)
        made = original(*args, **kwargs)
        return made.pin_memory() if made.device.type == "cpu" else made

    return factory
