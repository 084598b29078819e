"""Checks whether accesses are ordered after earlier ones, per block and byte range."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pytest_pprank.devices.sim import memory, races, stacks
from pytest_pprank.devices.sim.accesses import Entry, Rows, Span, Work, overlap, report, side
from pytest_pprank.devices.sim.allocator import FREED
from pytest_pprank.devices.sim.memory import Block
from pytest_pprank.devices.sim.reports import Kind, Side, describe, reports
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import Clock, Stream, host, lock

_MOST = 64


_tuple = tuple.__new__  # the constructor of a NamedTuple takes twice as long


def begin(what: str, stream: Stream) -> Work:
    """Enqueue a piece of work."""
    return Work(what, stream, stream.tick(), stacks.take() if settings.tracking else ())


def touch(
    block: Block, tensor: torch.Tensor, write: bool, work: Work, rows: Rows | None = None
) -> None:
    """Record that `work` reads or writes `tensor`; report conflicting unordered accesses."""
    whole = block.ptr == tensor.data_ptr() and block.shape == tensor.shape
    lo, hi = (0, block.nbytes) if whole else memory.byte_range(tensor)
    touch_bytes(block, lo, hi, write, work, rows, tensor)


def touch_bytes(
    block: Block, lo: int, hi: int, write: bool, work: Work, rows: Rows | None, tensor: torch.Tensor
) -> None:
    """Record that `work` reads or writes bytes `lo` to `hi` of a block, as a part of `tensor`."""
    if block.pending:
        settle(block, work.stream.clock)
    if not settings.tracking:
        return
    sid = work.stream.stream_id
    entry: Entry = _tuple(
        Entry, (lo, hi, write, sid, work.number, work, tensor.shape, tensor.dtype, rows, False)
    )
    log = block.log
    # `clean` saves comparisons: the version up to which a stream is ordered after the whole log.
    # The version changes only with the accessing stream: work on one stream is ordered anyway.
    if block.last != sid:
        if block.last == FREED:
            block.log = log = {key: e._replace(freed=True) for key, e in log.items()}
        block.last = sid
        block.version += 1
    if block.races:
        races.seen(block, entry, work.stream.clock)
    clean = block.clean.get(sid) == block.version or _compare(block, entry, work.stream.clock)
    if write and clean and lo == 0 and hi >= block.nbytes and rows is None:
        log.clear()  # all earlier accesses are ordered before this one
    elif len(log) >= _MOST:
        _prune(log)
    log[(lo, hi, write, sid) if rows is None else (lo, hi, write, sid, work.number)] = entry


def made(tensor: torch.Tensor, work: Work) -> None:
    """Record that `work` has written a new tensor."""
    block = memory.block_of(tensor)
    if block.last:  # memory that another tensor used before
        touch(block, tensor, True, work)
        return
    sid, size = work.stream.stream_id, block.nbytes
    block.last, block.version = sid, 1
    block.clean[sid] = 1
    block.log[(0, size, True, sid)] = _tuple(
        Entry, (0, size, True, sid, work.number, work, block.shape, block.dtype, None, False)
    )


def _compare(block: Block, entry: Entry, clock: Clock) -> bool:
    """Report conflicts with `entry`; return whether it is ordered after all recorded accesses."""
    clean = True
    for other in list(block.log.values()):
        if other.stream_id == entry.stream_id or clock.get(other.stream_id, 0) >= other.number:
            continue
        clean = False
        if (other.write or entry.write) and overlap(other, entry):
            if races.may_not_matter(block, other, entry):
                races.note(block, other, entry)
            else:
                report(block, other, entry)
    if clean:
        block.clean[entry.stream_id] = block.version
    return clean


def _prune(log: dict[Any, Entry]) -> None:
    """Drop accesses that the host has waited for: all later ones are ordered. Then the oldest."""
    seen = host.clock
    for key in [k for k, e in log.items() if seen.get(e.stream_id, 0) >= e.number]:
        del log[key]
    while len(log) >= _MOST:
        del log[next(iter(log))]


def settle(block: Block, clock: Clock) -> None:
    """Perform the deferred copies into `block` that are ordered before work with this clock."""
    for copy in list(block.pending):
        if settings.untracked or clock.get(copy.stream.stream_id, 0) >= copy.number:
            copy.run()


def raw_access(
    pointer: int,
    nbytes: int,
    *,
    write: bool,
    what: str,
    clock: Clock | None = None,
    reads_matter: bool = True,
) -> None:
    """Check an access by address, outside torch (RDMA, Mooncake).

    Only work that the host has waited for is ordered before it. `clock`: what the accessing thread
    knows to be complete, if that is less (see `Host.of_this_thread`). `reads_matter`: whether
    earlier reads of the memory conflict with a write, too.
    """
    with lock:
        memory.collect()
        stack = stacks.take()
        known = host.clock if clock is None else clock
        for block in list(memory.blocks.values()):
            start = block.ptr
            if not (start < pointer + nbytes and pointer < start + block.nbytes):
                continue
            settle(block, known)
            lo = max(pointer, start) - start
            hi = min(pointer + nbytes, start + block.nbytes) - start
            _check_raw(block, lo, hi, known, Raw(what, write, stack, write and reads_matter))


class Raw(NamedTuple):
    """An access by address."""

    what: str
    write: bool
    stack: stacks.Stack
    after_reads: bool


def _check_raw(block: Block, lo: int, hi: int, known: Clock, raw: Raw) -> None:
    span = Span(lo, hi)
    verb = "writes" if raw.write else "reads"
    for entry in list(block.log.values()):
        ordered = known.get(entry.stream_id, 0) >= entry.number
        if not ordered and (entry.write or raw.after_reads) and overlap(entry, span):
            second = Side(f"{raw.what} {verb} {hi - lo} bytes by address", "on the host", raw.stack)
            tensor = describe(entry.dtype, entry.shape)
            reports.add(Kind.RAW_ACCESS, tensor, (block.ptr,), side(entry), second)
