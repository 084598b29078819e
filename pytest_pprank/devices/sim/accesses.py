"""Accesses to device memory: which bytes, by what work, and how a finding describes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_pprank.devices.sim import stacks
from pytest_pprank.devices.sim.reports import Kind, Side, describe, reports

if TYPE_CHECKING:
    from pytest_pprank.devices.sim.memory import Block
    from pytest_pprank.devices.sim.streams import Clock, Stream


class Rows(NamedTuple):
    """Rows of the first dimension that an indexed access touches; each has `width` bytes."""

    ids: torch.Tensor
    start: int
    width: int
    rows: int

    def places(self) -> torch.Tensor:
        """Return the row numbers, with negative ones counted from the end."""
        ids = self.ids.to(torch.int64)
        return torch.where(ids < 0, ids + self.rows, ids)


def rows_of(tensor: torch.Tensor, ids: torch.Tensor) -> Rows | None:
    """Return the rows `ids` of a device tensor; `ids`: a CPU tensor that must not change."""
    if tensor.dim() == 0 or tensor.stride(0) <= 0:
        return None
    width = tensor.element_size()
    start, step = tensor.storage_offset() * width, tensor.stride(0) * width
    return Rows(ids, start, step, tensor.shape[0])


class Work(NamedTuple):
    """A piece of work that accesses memory: an operator on a stream, with its sequence number."""

    what: str
    stream: Stream
    number: int
    stack: stacks.Stack
    blind: bool = False
    """Whether the values it writes are independent of the memory's old values."""


class Entry(NamedTuple):
    """One access to bytes `lo` to `hi`, by a piece of work with sequence number `number`."""

    lo: int
    hi: int
    write: bool
    stream_id: int
    number: int
    work: Work
    shape: Any
    dtype: Any
    rows: Rows | None
    freed: bool

    @property
    def stream(self) -> Stream:
        return self.work.stream

    def is_before(self, stream_id: int, clock: Clock) -> bool:
        """Return whether this access is ordered before work of a stream with this clock."""
        return self.stream_id == stream_id or clock.get(self.stream_id, 0) >= self.number


class Span(NamedTuple):
    """All bytes from `lo` to `hi` of a block."""

    lo: int
    hi: int
    rows: None = None


def overlap(one: Entry, two: Entry | Span) -> bool:
    """Return whether two accesses have a byte in common."""
    if one.lo >= two.hi or two.lo >= one.hi:
        return False
    if one.rows is None and two.rows is None:
        return True
    if one.rows is not None and two.rows is not None:
        a, b = one.rows, two.rows
        if a.start == b.start and a.width == b.width:
            return bool(torch.isin(a.places(), b.places()).any())
        return True
    rows, span = (one.rows, two) if one.rows is not None else (two.rows, one)
    assert rows is not None
    begins = rows.start + rows.places() * rows.width
    return bool(((begins < span.hi) & (begins + rows.width > span.lo)).any())


def is_pending(block: Block, entry: Entry) -> bool:
    """Return whether an access belongs to a copy that has not run yet."""
    return any(
        copy.stream.stream_id == entry.stream_id and copy.number == entry.number
        for copy in block.pending
    )


def report(block: Block, first: Entry, second: Entry, reader: Entry | None = None) -> None:
    """Record an unordered pair of accesses; `reader`: the access that observes the result."""
    kind = Kind.UNORDERED
    if first.freed:
        kind = Kind.FREED_IN_USE
    elif is_pending(block, first):
        kind = Kind.COPY_IN_FLIGHT
    tensor = describe(second.dtype, second.shape)
    later = side(second)
    if reader is not None:
        seen = f"{later.what}, which {reader.work.what} reads, on {reader.stream!r}"
        later = replace(later, what=seen)
    reports.add(kind, tensor, (block.ptr,), side(first), later)


def side(entry: Entry) -> Side:
    """Return an access as one side of a finding."""
    verb = "writes" if entry.write else "reads"
    tensor = describe(entry.dtype, entry.shape)
    freed = " (a tensor that was freed since)" if entry.freed else ""
    what = f"{entry.work.what} {verb} {tensor}{freed}"
    return Side(what, f"on {entry.stream!r}", entry.work.stack)
