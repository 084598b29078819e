"""Hooks in torch.distributed, at the lowest level that Python can reach.

They wrap the methods of the C++ classes ProcessGroup and Work, which everything in
torch.distributed calls. So operations are seen whatever name they were imported under, and whenever
that was. Not seen are operations that C++ issues itself (functional collectives, compiled graphs),
and calls that bypass ProcessGroup (a Backend's own methods, NCCL called directly).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pytest_pprank.oplog.file import SEND
from pytest_pprank.oplog.record.calls import KINDS, Kind
from pytest_pprank.oplog.record.recorder import Handle, LedgerRecorder, first_line
from pytest_pprank.oplog.record.writer import ISSUED

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

    from pytest_pprank.oplog.record.writer import Entry

    SendInterceptor = Callable[[Callable[[], Work], ProcessGroup, tuple[object, ...]], Work]

_Method = Callable[..., object]
_HELPER_ARGUMENTS = (
    "group_size",
    "group_rank",
    "global_ranks_in_group",
    "backend",
    "store",
    "group_name",
)
_recorder: LedgerRecorder | None = None
interceptor: SendInterceptor | None = None
"""Called in place of each send, as ``interceptor(send, group, receiver)``; returns a Work.

`send()` sends as torch would, and returns torch's Work. `receiver`: the arguments of torch's method
after the tensors (rank and tag).
"""
_local = threading.local()


def install(recorder: LedgerRecorder) -> None:
    """Report every operation in this process to `recorder` from now on."""
    global _recorder
    from torch._C import Future
    from torch._C._distributed_c10d import ProcessGroup, Store, Work
    from torch.distributed import distributed_c10d as c10d

    if _recorder is None:
        for name, kind in KINDS.items():
            if hasattr(ProcessGroup, name):
                _replace(ProcessGroup, name, functools.partial(_issuing, kind))
        _replace(ProcessGroup, "_start_coalescing", _start_coalescing)
        _replace(ProcessGroup, "_end_coalescing", _end_coalescing)
        for owner in (Work, Future):
            _replace(owner, "wait", recording_wait)
        _replace(Work, "is_completed", recording_is_completed)
        _replace(Work, "get_future", _deriving)
        for name in ("get", "wait"):
            _replace(Store, name, functools.partial(_store_waiting, name))
        _replace(c10d, "_new_process_group_helper", _creating)
    _recorder = recorder


def _replace(owner: object, name: str, make: Callable[[_Method], _Method]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


def _issuing(kind: Kind, original: _Method) -> _Method:
    def method(self: object, *args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        arguments = (*args, *kwargs.values()) if kwargs else args
        entry = _recorder.operation(kind, self, arguments)
        if _recorder.listeners:
            _recorder.notify(ISSUED, entry)
        try:
            if interceptor is None or kind.way != SEND:
                work = original(self, *args, **kwargs)
            else:
                send = functools.partial(original, self, *args, **kwargs)
                work = interceptor(send, self, arguments[1:])
        except BaseException as error:
            _recorder.refused(entry, error)
            raise
        _recorder.issued(entry, work)
        return work

    return method


def recording_wait(original: _Method) -> _Method:
    """Wrap a Work's or Future's ``wait`` so that it is recorded."""

    def method(self: object, *args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        handle = _recorder.waits(self)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _failed(self, handle, error)
            raise
        _recorder.waited(handle)
        return result

    return method


def _failed(work: Work, handle: Handle | None, error: BaseException) -> None:
    assert _recorder is not None
    done = handle is None or handle.on_device or not hasattr(work, "is_completed")
    _recorder.waited(handle, first_line(error), done or work.is_completed())


def recording_is_completed(original: _Method) -> _Method:
    """Wrap a Work's ``is_completed`` so that a positive answer is recorded."""

    def method(self: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        completed = original(self)
        if completed:
            _recorder.seen_completed(self)
        return completed

    return method


def _deriving(original: _Method) -> _Method:
    def method(self: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        future = original(self)
        _recorder.derived(self, future)
        return future

    return method


def _start_coalescing(original: _Method) -> _Method:
    def method(self: object, *args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        result = original(self, *args, **kwargs)
        _recorder.begin_batch()
        return result

    return method


def _end_coalescing(original: _Method) -> _Method:
    def method(self: object, *args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        work = None
        try:
            work = original(self, *args, **kwargs)
        finally:
            _recorder.end_batch(work)
        return work

    return method


def _store_waiting(name: str, original: _Method) -> _Method:
    def method(self: object, *args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        if getattr(_local, "creating", False):
            return original(self, *args, **kwargs)  # part of a creation, which is recorded already
        keys = (*args, *kwargs.values())
        entry = _recorder.store_wait(name, keys[0] if keys else "")
        return _recorded(entry, original, self, *args, **kwargs)

    return method


def _creating(original: _Method) -> _Method:
    def helper(*args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        assert _recorder is not None
        entry = _recorder.creation(_by_name(args, kwargs))
        _local.creating = True
        try:
            return _recorded(entry, original, *args, **kwargs)
        finally:
            _local.creating = False

    return helper


def _recorded(entry: Entry | None, original: _Method, *args: object, **kwargs: object) -> object:
    """Call a function that blocks until the operation is done, and record its end."""
    __tracebackhide__ = True
    assert _recorder is not None
    try:
        result = original(*args, **kwargs)
    except BaseException as error:
        _recorder.ended(entry, error)
        raise
    _recorder.ended(entry)
    return result


def _by_name(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of torch's `_new_process_group_helper` by name."""
    return {**dict(zip(_HELPER_ARGUMENTS, args, strict=False)), **kwargs}
