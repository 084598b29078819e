"""Messages and collectives of device tensors: run by gloo on host aliases, with NCCL's rules.

Each process group has a stream of its own. An operation waits for the stream that is current at the
call, and its accesses are made on the group's stream. ``Work.wait()`` makes the then current stream
wait for the operation, and for the senders' earlier work (`mail`). gloo's own wait
blocks the host, unlike NCCL's: the host does block here, but that does not count as having waited
for the device.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from pytest_pprank.devices.sim import NAME, stacks, tracker
from pytest_pprank.devices.sim.accesses import Work
from pytest_pprank.devices.sim.kernels import Kernel
from pytest_pprank.devices.sim.mail import Envelope, mailbox
from pytest_pprank.devices.sim.memory import operand
from pytest_pprank.devices.sim.plans import overload
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import Clock, Stream, current_stream, join, lock

_KEY = "PrivateUse1"
_IN_PLACE = frozenset(
    ("recv_", "recv_any_source_", "broadcast_", "allreduce_", "allreduce_coalesced_", "reduce_")
)
_group_streams: weakref.WeakKeyDictionary[Any, Stream] = weakref.WeakKeyDictionary()
_works: dict[int, _Issued] = {}
_local = threading.local()


class _Issued:
    """An operation under way: its stream, the stream's clock at issue, and the peers' clocks."""

    def __init__(self, work: Any, stream: Stream | None, clock: Clock) -> None:
        key = id(work)
        self.work = weakref.ref(work, lambda _: _works.pop(key, None))
        self.stream, self.clock = stream, clock
        self.envelope: Envelope | None = getattr(_local, "envelope", None)


_ISSUING = (
    "send",
    "recv",
    "recv_anysource",
    "broadcast",
    "allreduce",
    "allreduce_coalesced",
    "reduce",
    "allgather",
    "_allgather_base",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "gather",
    "scatter",
    "reduce_scatter",
    "_reduce_scatter_base",
    "alltoall",
    "alltoall_base",
    "reduce_scatter_tensor_coalesced",
)


def register() -> torch.library.Library:
    """Replace c10d's kernels for the device: torch's own look for a backend of the device."""
    library = torch.library.Library("c10d", "IMPL")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("c10d::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEY):
            library.impl(name[6:], _kernel(overload(name)), _KEY, allow_override=True)
    return library


def install() -> None:
    """Hook process groups and their Works, at the lowest level that is visible in Python."""
    from torch._C._distributed_c10d import ProcessGroup, Work

    for name in _ISSUING:
        if hasattr(ProcessGroup, name):
            _replace(ProcessGroup, name, _issuing)
    from torch.distributed import distributed_c10d as c10d

    _replace(ProcessGroup, "_end_coalescing", _ending)
    _replace(c10d, "_new_process_group_helper", _creating)
    _replace(Work, "wait", _waiting)


def register_backend(group: Any) -> None:
    """Make torch.distributed use gloo for the device's tensors in `group`, too."""
    from torch.distributed import ProcessGroup

    known = [str(one) for one in group._device_types]
    if NAME not in known and "cpu" in known:
        gloo = group._get_backend(torch.device("cpu"))
        group._register_backend(torch.device(NAME), ProcessGroup.BackendType.GLOO, gloo)


def _kernel(op: Any) -> Kernel:
    base = op._schema.name.removeprefix("c10d::")
    names = [argument.name for argument in op._schema.arguments]
    plan_name = op.name()

    def writes(name: str) -> bool:
        return name.startswith("output") or (base in _IN_PLACE and name.startswith("tensor"))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        pairs: list[tuple[torch.Tensor, torch.Tensor, bool]] = []

        def alias(value: Any, write: bool) -> Any:
            if isinstance(value, torch.Tensor) and not value.is_cpu:
                _, host = operand(value)
                pairs.append((value, host, write))
                return host
            if isinstance(value, (list, tuple)):
                return [alias(item, write) for item in value]
            return value

        given = [alias(value, writes(name)) for value, name in zip(args, names, strict=False)]
        named = {name: alias(value, writes(name)) for name, value in kwargs.items()}
        _track(plan_name, pairs)
        group = getattr(_local, "group", None)
        if pairs and group is not None:
            arguments = dict(zip(names, args, strict=False)) | kwargs
            _local.envelope = mailbox(group).exchange(base, arguments, _local.issued)
        return _devices(op(*given, **named), {id(host): tensor for tensor, host, _ in pairs})

    return kernel


def _devices(result: Any, tensors: dict[int, torch.Tensor]) -> Any:
    """Return a result with the host aliases replaced by their device tensors."""
    if isinstance(result, (list, tuple)):
        return type(result)(_devices(item, tensors) for item in result)
    return tensors.get(id(result), result) if isinstance(result, torch.Tensor) else result


def _track(name: str, pairs: list[tuple[torch.Tensor, torch.Tensor, bool]]) -> None:
    if not pairs:
        return
    with lock:
        index = pairs[0][0].device.index
        stream = _group_stream(index)
        join(stream.clock, current_stream(index).clock)
        stack = stacks.take() if settings.tracking else ()
        work = Work(name, stream, stream.tick(), stack)
        for tensor, _, write in pairs:
            tracker.touch(operand(tensor)[0], tensor, write, work)
        _local.issued = dict(stream.clock)


def _group_stream(index: int) -> Stream:
    group = getattr(_local, "group", None)
    if group is None:
        return current_stream(index)
    stream = _group_streams.get(group)
    if stream is None:
        stream = _group_streams[group] = Stream(index)
    return stream


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


def _issuing(original: Any) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        before = getattr(_local, "group", None)
        # c10d's kernels run inside the call, in this thread, and do not know their group otherwise
        _local.group, _local.issued, _local.envelope = self, None, None
        try:
            work = original(self, *args, **kwargs)
        finally:
            _local.group = before
        _bind(work, _group_streams.get(self))
        return work

    return method


def _ending(original: Any) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        work = original(self, *args, **kwargs)
        stream = _group_streams.get(self)
        _local.issued = dict(stream.clock) if stream is not None else None
        _bind(work, _group_streams.get(self))
        return work

    return method


def _bind(work: Any, stream: Stream | None) -> None:
    """Remember the clock of the group's stream when `work` was issued."""
    clock: Clock | None = getattr(_local, "issued", None)
    if clock is not None and work is not None:
        _works[id(work)] = _Issued(work, stream, clock)
    _local.issued = _local.envelope = None


def _creating(original: Any) -> Any:
    def helper(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        if isinstance(made[0], torch.distributed.ProcessGroup):
            register_backend(made[0])
        return made

    return helper


def _waiting(original: Any) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        result = original(self, *args, **kwargs)
        known = _works.get(id(self))
        if known is not None and known.work() is self:
            _arrived(known)
        return result

    return method


def _arrived(issued: _Issued) -> None:
    """Order the current stream after an operation, and after its peers' earlier work."""
    envelope, issued.envelope = issued.envelope, None
    collected = envelope.box.collect(envelope, issued.work()) if envelope is not None else {}
    with lock:
        join(issued.clock, collected)
        join(current_stream().clock, issued.clock)
        if issued.stream is not None:  # later work of the group's stream is after this operation
            join(issued.stream.clock, collected)
