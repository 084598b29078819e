"""The current state of tensors, for assertions: nothing is recorded or waited for."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pytest_pprank.devices.sim import copies, memory, tracker
from pytest_pprank.devices.sim.accesses import side
from pytest_pprank.devices.sim.reports import Side, access
from pytest_pprank.devices.sim.streams import Clock, current_stream, host, join, lock


def unordered_writes(tensor: torch.Tensor) -> list[str]:
    """Describe writes to a device tensor that are not ordered before the current stream."""
    with lock:
        block = memory.block_of(tensor)
        lo, hi = memory.byte_range(tensor)
        clock = _known(block)
        late = [
            _words(side(entry))
            for entry in list(block.log.values())
            if entry.write
            and not entry.freed
            and (entry.lo < hi and lo < entry.hi)
            and clock.get(entry.stream_id, 0) < entry.number
        ]
        return late or [
            _words(copy.side())
            for copy in copies.copies_into(tensor)
            if clock.get(copy.stream.stream_id, 0) < copy.number
        ]


def host_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a device tensor, with the values that the current stream would read."""
    with lock:
        block, alias = memory.operand(tensor)
        if block.pending:
            tracker.settle(block, _known(block))
        return alias


def _known(block: memory.Block) -> Clock:
    """Return the clock that work enqueued now would have."""
    clock = dict(current_stream(block.device).clock)
    join(clock, host.clock)
    return clock


def in_flight(tensors: Iterable[tuple[str, torch.Tensor]] | None) -> list[str]:
    """Describe the copies between host and device that the host has not waited for.

    `tensors` (name, tensor): only copies into these, and out of host tensors among them; None: all.
    """
    with lock:
        under_way = copies.in_flight()
        if tensors is None:
            return [_words(copy.side()) for copy in under_way]
        return [
            f"{name}: {_words(copy.side())}"
            for name, tensor in tensors
            for copy in under_way
            if _touches(copy, tensor)
        ]


def _touches(copy: copies.DeferredCopy, tensor: torch.Tensor) -> bool:
    """Return whether a tensor is the host side of a copy, or its destination."""
    if tensor.is_cpu:
        return _overlap(copy.pinned, tensor)
    if not memory.is_sim(tensor) or not copy.to_device:
        return False
    return _overlap(copy.target, memory.host_alias(tensor))


def _overlap(one: torch.Tensor, two: torch.Tensor) -> bool:
    if one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr():
        return False
    (a, b), (c, d) = memory.byte_range(one), memory.byte_range(two)
    return a < d and c < b


def _words(side: Side) -> str:
    first, *places = access(side).lines(1)
    return " at ".join([first, *(place.strip() for place in places)])
