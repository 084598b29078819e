"""The rules of device `sim` as small programs that run on `sim` and on a GPU.

A scenario does some work in an order that a rule of devices/sim/SEMANTICS.md speaks of, and returns
whether the values are those of the order in which the program is written. `racy`: nothing
guarantees them. Then sim must report it, and a GPU whose streams are held up must show other
values.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

SIZE = 1 << 12
"""Elements of each tensor: 32 KiB, which no driver passes along with a command."""
_SLEEP_CYCLES = 100_000_000
"""Some 50 ms of a GPU: longer than the host needs for all that a scenario enqueues."""


class Machine:
    """The device that a scenario runs on: `name` is ``sim`` or ``cuda``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = torch.get_device_module(name)

    def full(self, value: int) -> torch.Tensor:
        """Return a tensor on the device, whose writing is done."""
        made = torch.full((SIZE,), value, device=self.name)
        self.settle()
        return made

    def pinned(self, value: int) -> torch.Tensor:
        """Return a tensor in pinned memory of the host."""
        return torch.full((SIZE,), value).pin_memory()

    def side(self) -> AbstractContextManager[Any]:
        """Return the context of a new stream."""
        stream: AbstractContextManager[Any] = self.module.stream(self.module.Stream())
        return stream

    def hold(self) -> None:
        """Keep the current stream busy, so that what nothing orders comes in another order."""
        if self.name == "cuda":
            self.module._sleep(_SLEEP_CYCLES)

    def settle(self) -> None:
        """Wait for all work on the device."""
        self.module.synchronize()

    def equal(self, tensor: torch.Tensor, value: int) -> bool:
        """Wait for all work, and return whether each element is `value`."""
        self.settle()
        return bool((tensor.cpu() == value).all())


def ones(host: torch.Tensor) -> bool:
    """Return whether each element of a host tensor is 1, as of now."""
    return bool(host.tolist() == [1] * SIZE)


@dataclass(frozen=True)
class Scenario:
    """One program; `rule` is the beginning of a row of SEMANTICS.md."""

    name: str
    rule: str
    racy: bool
    run: Callable[[Machine], bool]


SCENARIOS: list[Scenario] = []


def scenario(rule: str, *, racy: bool = False) -> Callable[[Callable[[Machine], bool]], None]:
    """Register a function as a scenario of that rule."""

    def register(run: Callable[[Machine], bool]) -> None:
        SCENARIOS.append(Scenario(run.__name__, rule, racy, run))

    return register


ONE_STREAM = "Work on one stream"
TWO_STREAMS = "Work on two streams"
EVENT = "An event stands for"
SIDE = "torch's side streams"
HOST_WAITS = "`synchronize` of an event"
CONFLICTS = "Two reads need no order"
UPLOAD = "A non-blocking copy from pinned memory"
PAGEABLE = "A non-blocking copy from pageable memory"
BLOCKING = "A blocking copy"
CONVERTS = "A non-blocking copy that changes the dtype"
DOWNLOAD = "A non-blocking copy to pinned memory"
FREED = "Freed memory goes to"
HOST_TENSORS = "Host tensors beside device tensors"


@scenario(ONE_STREAM)
def copy_then_read(m: Machine) -> bool:
    d, p = m.full(0), m.pinned(1)
    m.hold()
    d.copy_(p, non_blocking=True)
    return m.equal(d + 1, 2)


@scenario(TWO_STREAMS, racy=True)
def copy_on_another_stream(m: Machine) -> bool:
    d, p = m.full(0), m.pinned(1)
    with m.side():
        m.hold()
        d.copy_(p, non_blocking=True)
    return m.equal(d + 1, 2)


@scenario(TWO_STREAMS)
def wait_stream(m: Machine) -> bool:
    d, p = m.full(0), m.pinned(1)
    with m.side() as _:
        m.hold()
        d.copy_(p, non_blocking=True)
        copied = m.module.current_stream()
    m.module.current_stream().wait_stream(copied)
    return m.equal(d + 1, 2)


@scenario(TWO_STREAMS)
def order_through_a_third_stream(m: Machine) -> bool:
    d, y = m.full(0), m.full(0)
    first, third = m.module.Event(), m.module.Event()
    with m.side():
        m.hold()
        d.fill_(1)
        first.record()
    with m.side():
        m.module.current_stream().wait_event(first)
        third.record()
    m.module.current_stream().wait_event(third)
    y.copy_(d)
    return m.equal(y, 1)


@scenario(EVENT)
def work_before_the_record(m: Machine) -> bool:
    d, event = m.full(0), m.module.Event()
    with m.side():
        m.hold()
        d.fill_(1)
        event.record()
    m.module.current_stream().wait_event(event)
    return m.equal(d + 1, 2)


@scenario(EVENT, racy=True)
def work_after_the_record(m: Machine) -> bool:
    d, event = m.full(0), m.module.Event()
    with m.side():
        event.record()
        m.hold()
        d.fill_(1)
    m.module.current_stream().wait_event(event)
    return m.equal(d + 1, 2)


@scenario(EVENT, racy=True)
def event_that_was_never_recorded(m: Machine) -> bool:
    d, event = m.full(0), m.module.Event()
    with m.side():
        m.hold()
        d.fill_(1)
    m.module.current_stream().wait_event(event)
    return m.equal(d + 1, 2)


@scenario(EVENT)
def a_second_record_moves_the_event(m: Machine) -> bool:
    d, event = m.full(0), m.module.Event()
    with m.side():
        event.record()
        m.hold()
        d.fill_(1)
        event.record()
    m.module.current_stream().wait_event(event)
    return m.equal(d + 1, 2)


@scenario(SIDE, racy=True)
def side_stream_reads_what_the_default_stream_writes(m: Machine) -> bool:
    d, y = m.full(0), m.full(0)
    m.hold()
    d.fill_(1)
    with m.side():
        y.copy_(d)
    return m.equal(y, 1)


@scenario(SIDE, racy=True)
def default_stream_reads_what_a_side_stream_writes(m: Machine) -> bool:
    d, y = m.full(0), m.full(0)
    with m.side():
        m.hold()
        d.fill_(1)
    y.copy_(d)
    return m.equal(y, 1)


def _waits(name: str, wait: Callable[[Machine, torch.Tensor, Any], object]) -> None:
    def run(m: Machine) -> bool:
        d, y = m.full(0), m.full(0)
        with m.side():
            m.hold()
            d.fill_(1)
            wait(m, d, m.module.current_stream())
        y.copy_(d)
        return m.equal(y, 1)

    run.__name__ = f"host_waits_by_{name}"
    scenario(HOST_WAITS)(run)


_waits("event", lambda _m, _d, stream: stream.record_event().synchronize())
_waits("stream", lambda _m, _d, stream: stream.synchronize())
_waits("device", lambda m, _d, _stream: m.settle())
_waits("item", lambda _m, d, _stream: d[0].item())
_waits("cpu", lambda _m, d, _stream: d.cpu())
_waits("tolist", lambda _m, d, _stream: d[:3].tolist())
_waits("nonzero", lambda _m, d, _stream: d.nonzero())


@scenario(CONFLICTS, racy=True)
def write_while_another_stream_reads(m: Machine) -> bool:
    d, y = m.full(1), m.full(0)
    with m.side():
        m.hold()
        y.copy_(d)
    d.fill_(9)
    return m.equal(y, 1)


@scenario(CONFLICTS)
def two_reads(m: Machine) -> bool:
    d, x, y = m.full(1), m.full(0), m.full(0)
    with m.side():
        m.hold()
        x.copy_(d)
    y.copy_(d)
    return m.equal(x, 1) and m.equal(y, 1)


@scenario(CONFLICTS)
def bytes_that_do_not_overlap(m: Machine) -> bool:
    d, y = m.full(1), m.full(0)
    half = SIZE // 2
    with m.side():
        m.hold()
        d[half:].fill_(9)
    y[:half].copy_(d[:half])
    return m.equal(y[:half], 1) and m.equal(d[half:], 9)


@scenario(CONFLICTS, racy=True)
def rows_that_an_index_names(m: Machine) -> bool:
    d, y, rows = m.full(0), m.full(0), torch.arange(8, device=m.name)
    m.settle()
    with m.side():
        m.hold()
        d.index_fill_(0, rows, 1)
    y[:8].copy_(d[:8])
    return m.equal(y[:8], 1)


@scenario(UPLOAD, racy=True)
def source_is_rewritten(m: Machine) -> bool:
    d, p = m.full(0), m.pinned(1)
    m.hold()
    d.copy_(p, non_blocking=True)
    p.fill_(9)
    return m.equal(d, 1)


@scenario(UPLOAD, racy=True)
def source_is_rewritten_after_the_device_was_told_to_use_it(m: Machine) -> bool:
    d, p = m.full(0), m.pinned(1)
    m.hold()
    d.copy_(p, non_blocking=True)
    y = d + 1
    p.fill_(9)
    return m.equal(y, 2)


@scenario(UPLOAD)
def source_is_rewritten_when_the_copy_is_done(m: Machine) -> bool:
    d, p = m.full(0), m.pinned(1)
    m.hold()
    d.copy_(p, non_blocking=True)
    m.module.current_stream().record_event().synchronize()
    p.fill_(9)
    return m.equal(d, 1)


@scenario(PAGEABLE)
def pageable_source_is_rewritten(m: Machine) -> bool:
    d, source = m.full(0), torch.ones(SIZE, dtype=torch.int64)
    m.hold()
    d.copy_(source, non_blocking=True)
    source.fill_(9)
    return m.equal(d, 1)


@scenario(PAGEABLE, racy=True)
def pageable_copy_on_another_stream(m: Machine) -> bool:
    d, y, source = m.full(0), m.full(0), torch.ones(SIZE, dtype=torch.int64)
    with m.side():
        m.hold()
        d.copy_(source, non_blocking=True)
    y.copy_(d)
    return m.equal(y, 1)


@scenario(BLOCKING)
def blocking_copy_on_another_stream(m: Machine) -> bool:
    d, y, p = m.full(0), m.full(0), m.pinned(1)
    with m.side():
        m.hold()
        d.copy_(p)
    y.copy_(d)
    return m.equal(y, 1)


@scenario(CONVERTS, racy=True)
def source_of_a_converting_copy_is_rewritten(m: Machine) -> bool:
    d, p = m.full(0), torch.ones(SIZE, dtype=torch.int32).pin_memory()
    m.hold()
    d.copy_(p, non_blocking=True)
    p.fill_(9)
    return m.equal(d, 1)


@scenario(CONVERTS)
def source_of_a_blocking_converting_copy_is_rewritten(m: Machine) -> bool:
    d, p = m.full(0), torch.ones(SIZE, dtype=torch.int32).pin_memory()
    m.hold()
    d.copy_(p)
    p.fill_(9)
    return m.equal(d, 1)


@scenario(DOWNLOAD, racy=True)
def download_is_read_at_once(m: Machine) -> bool:
    d, p = m.full(1), m.pinned(0)
    m.hold()
    p.copy_(d, non_blocking=True)
    return ones(p)


@scenario(DOWNLOAD, racy=True)
def download_to_new_memory_is_read_at_once(m: Machine) -> bool:
    d = m.full(1)
    m.hold()
    (d * 7).to("cpu", non_blocking=True)  # the allocator of pinned memory gives this out again
    m.settle()
    m.hold()
    return ones(d.to("cpu", non_blocking=True))


@scenario(DOWNLOAD)
def download_is_read_when_it_is_done(m: Machine) -> bool:
    d, p = m.full(1), m.pinned(0)
    m.hold()
    p.copy_(d, non_blocking=True)
    m.module.current_stream().synchronize()
    return ones(p)


@scenario(DOWNLOAD)
def download_holds_what_was_there(m: Machine) -> bool:
    d, p = m.full(1), m.pinned(0)
    m.hold()
    p.copy_(d, non_blocking=True)
    d.fill_(9)
    m.settle()
    return ones(p)


@scenario(DOWNLOAD)
def download_to_pageable_memory(m: Machine) -> bool:
    d, host = m.full(1), torch.zeros(SIZE, dtype=torch.int64)
    m.hold()
    host.copy_(d, non_blocking=True)
    return ones(host)


def _freed(m: Machine, before_free: Callable[[torch.Tensor, Any, Any], object]) -> bool:
    own, y = m.module.current_stream(), m.full(0)
    x = m.full(1)
    with m.side():
        user = m.module.current_stream()
        m.hold()
        y.copy_(x)
    before_free(x, user, own)
    del x
    z = torch.full((SIZE,), 9, device=m.name)
    return m.equal(y, 1) and m.equal(z, 9)


@scenario(FREED, racy=True)
def memory_is_freed_while_another_stream_reads_it(m: Machine) -> bool:
    return _freed(m, lambda _x, _user, _own: None)


@scenario(FREED)
def memory_is_freed_that_was_recorded(m: Machine) -> bool:
    return _freed(m, lambda x, user, _own: x.record_stream(user))


@scenario(FREED)
def memory_is_freed_after_a_wait(m: Machine) -> bool:
    return _freed(m, lambda _x, user, own: own.wait_stream(user))


@scenario(HOST_TENSORS)
def host_indices_make_the_host_wait(m: Machine) -> bool:
    d, y = m.full(0), m.full(0)
    with m.side():
        m.hold()
        d.fill_(1)
        d[torch.tensor([0, 1])]
    y.copy_(d)
    return m.equal(y, 1)


@scenario(HOST_TENSORS)
def foreach_copy_uploads(m: Machine) -> bool:
    d = m.full(0)
    m.hold()
    torch._foreach_copy_([d], [torch.ones(SIZE, dtype=torch.int64)])
    return m.equal(d, 1)


@scenario(HOST_TENSORS)
def host_tensors_are_refused(m: Machine) -> bool:
    d = m.full(0)
    try:
        d + torch.ones(SIZE, dtype=torch.int64)
    except RuntimeError:
        return True
    return False


@scenario(HOST_TENSORS)
def host_numbers_are_not_refused(m: Machine) -> bool:
    return m.equal(m.full(0) + torch.tensor(1), 1)
