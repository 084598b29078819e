"""Puts SGLang's typed events into the words of a trace. Needs neither torch nor SGLang."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events import types
from pytest_pprank.trace.file import AGREEMENT, BATCH, FORWARD, MEMORY, TRANSFER, Detail

_SHOWN = 3
_TOKENS = 64


class Described(NamedTuple):
    """What a trace has of an event."""

    kind: str
    name: str
    details: dict[str, Detail]
    stack: tuple[Site, ...] = ()


def describe(event: types.Event) -> Described | None:
    """Describe an event; None for one that says nothing to a reader of the page."""
    writer = _WRITERS.get(type(event))
    return None if writer is None else writer(event)


def names(rids: Iterable[str]) -> str:
    """Return a few of the request ids, and how many more there are."""
    each = list(rids)
    more = f" +{len(each) - _SHOWN}" if len(each) > _SHOWN else ""
    return ", ".join(each[:_SHOWN]) + more


def _prepared(event: types.BatchPrepared) -> Described:
    each = zip(event.rids, event.lengths, strict=False)
    tokens: list[str] = [f"{rid}: {length}" for rid, length in each]
    details: dict[str, Detail] = {"requests": list(event.rids), "tokens": tokens}
    return Described(BATCH, f"prepare {names(event.rids)}", details)


def _forward_made(event: types.ForwardMade) -> Described:
    ran = event.forward
    chunks: list[str] = [
        f"{rid}: {a}-{b}" for rid, (a, b) in zip(ran.rids, ran.extends, strict=False)
    ]
    details: dict[str, Detail] = {"mode": ran.mode, "requests": list(ran.rids), "chunks": chunks}
    return Described(BATCH, f"batch: {ran.mode} {names(ran.rids)}", details)


def _forward_entry(event: types.ForwardEntry) -> Described:
    details: dict[str, Detail] = {"mode": event.mode, "requests": list(event.rids)}
    if event.origin is not None and event.origin.lengths:
        each = zip(event.origin.rids, event.origin.lengths, strict=False)
        details["tokens"] = [f"{rid}: {length}" for rid, length in each]
    details["entries"] = [f"{name}: {size}" for name, size in event.sizes.items()]
    if event.problems:
        details["problems"] = list(event.problems)
    if event.on_host:
        details["on the host"] = [f"{it.name}: {it.text}" for it in event.on_host]
    return Described(FORWARD, f"{event.mode} {names(event.rids)}", details)


def _result(event: types.BatchResult) -> Described:
    details: dict[str, Detail] = {"mode": event.mode, "requests": list(event.rids)}
    return Described(BATCH, f"result: {event.mode} {names(event.rids)}", details)


def _scheduled(event: types.BatchScheduled) -> Described:
    details: dict[str, Detail] = {
        "waiting or running": [each.rid for each in event.pending],
        "KV tokens free": f"{event.free_tokens} of {event.total_tokens}",
        "request slots free": event.free_request_slots,
    }
    return Described(BATCH, f"schedule: {len(event.pending)} pending", details)


def _allocated(event: types.KvAllocated) -> Described:
    count, whose = len(event.tokens), f" for {event.rid}" if event.rid else ""
    known = event.pool is not None
    name = f"KV taken: {count} tokens{whose}" if known else f"KV taken{whose}"
    details: dict[str, Detail] = {"tokens": _ranges(event.tokens), "request": event.rid}
    return Described(MEMORY, name, details, event.stack)


def _freed(event: types.KvFreed) -> Described:
    details: dict[str, Detail] = {"tokens": _ranges(event.tokens)}
    name = f"KV freed: {len(event.tokens)} tokens" if event.pool is not None else "KV freed"
    return Described(MEMORY, name, details, event.stack)


def _slot_allocated(event: types.SlotAllocated) -> Described:
    details: dict[str, Detail] = {"requests": list(event.rids)}
    return Described(
        MEMORY, f"slot taken: {names(event.rids) or 'none left'}", details, event.stack
    )


def _slot_freed(event: types.SlotFreed) -> Described:
    details: dict[str, Detail] = {"slot": event.slot, "tokens with KV": event.tokens}
    return Described(MEMORY, f"slot freed: {event.rid}", details)


def _metadata_allocated(event: types.MetadataAllocated) -> Described:
    slot = "none left" if event.slot is None else event.slot
    whose = f" for {event.rid}" if event.rid else ""
    return Described(MEMORY, f"metadata slot taken: {slot}{whose}", {}, event.stack)


def _metadata_freed(event: types.MetadataFreed) -> Described:
    return Described(MEMORY, f"metadata slot freed: {event.slot}", {}, event.stack)


def _local(event: types.ConsensusLocal) -> Described | None:
    ready = sorted(event.ready)
    return _agreement(f"ready here: {names(ready)}", ready) if ready else None


def _brought(event: types.ConsensusBrought) -> Described | None:
    return _agreement(f"brings {names(event.ready)}", event.ready) if event.ready else None


def _applied(event: types.ConsensusApplied) -> Described | None:
    if not event.applied and not event.received:
        return None
    details: dict[str, Detail] = {
        "received": list(event.received or ()),
        "applied": list(event.applied or ()),
    }
    return Described(AGREEMENT, f"applies {names(event.applied or ())}", details)


def _handshakes(event: types.HandshakesDone) -> Described | None:
    if not event.rids:
        return None
    status: list[str] = [f"{rid}: {word}" for rid, word in event.status.items()]
    details: dict[str, Detail] = {"requests": list(event.rids), "status": status}
    return Described(AGREEMENT, f"handshake done: {names(event.rids)}", details)


def _told(event: types.RoomTold) -> Described:
    details: dict[str, Detail] = {"room": event.room, "status": event.status}
    return Described(AGREEMENT, f"tells room {event.room}: {event.status or 'removed'}", details)


def _agreement(name: str, rids: Iterable[str]) -> Described:
    return Described(AGREEMENT, name, {"requests": list(rids)})


def _sent(event: types.KvSent) -> Described:
    details: dict[str, Detail] = {"room": event.room, "tokens": event.tokens}
    return Described(TRANSFER, f"send KV of {event.tokens} tokens", details)


def _queued(event: types.KvQueued) -> Described:
    again = " again" if event.again else ""
    return Described(TRANSFER, f"KV chunk queued{again}", {})


def _read(event: types.KvRead) -> Described:
    total = sum(nbytes for _, nbytes in event.spans)
    details: dict[str, Detail] = {"bytes": total, "buffers": len(event.spans)}
    return Described(TRANSFER, f"transfer engine reads {total} B", details)


def _target(event: types.KvTarget) -> Described:
    total = sum(nbytes for _, nbytes in event.spans)
    details: dict[str, Detail] = {"bytes": total, "buffers": len(event.spans)}
    return Described(TRANSFER, f"room for {total} B of KV announced", details)


def _polled(event: types.TransferPolled) -> Described:
    details: dict[str, Detail] = {"room": event.room, "status": event.status}
    return Described(TRANSFER, f"KV transfer: {event.status}", details)


def _ranges(numbers: Iterable[int]) -> str:
    """Return ``3-7, 9``; of many numbers that are not in a row only the first ones."""
    each = list(numbers)
    first, last = (min(each), max(each)) if each else (0, 0)
    if first < last == first + len(each) - 1:
        return f"{first}-{last}"  # as most allocations are
    if len(each) > _TOKENS:
        return f"{_ranges(each[:_TOKENS])}, ..."
    runs: list[list[int]] = []
    for number in sorted(map(int, each)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


_WRITERS: dict[type, Callable[..., Described | None]] = {
    types.BatchPrepared: _prepared,
    types.ForwardMade: _forward_made,
    types.ForwardEntry: _forward_entry,
    types.BatchResult: _result,
    types.BatchScheduled: _scheduled,
    types.KvAllocated: _allocated,
    types.KvFreed: _freed,
    types.SlotAllocated: _slot_allocated,
    types.SlotFreed: _slot_freed,
    types.MetadataAllocated: _metadata_allocated,
    types.MetadataFreed: _metadata_freed,
    types.ConsensusLocal: _local,
    types.ConsensusBrought: _brought,
    types.ConsensusApplied: _applied,
    types.HandshakesDone: _handshakes,
    types.RoomTold: _told,
    types.KvSent: _sent,
    types.KvQueued: _queued,
    types.KvRead: _read,
    types.KvTarget: _target,
    types.TransferPolled: _polled,
}
"""A line for each event that is shown; messages come from the ledger, logs have a handler."""
