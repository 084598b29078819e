"""Reads the trace of a rank, also while the rank writes to it or after it has died."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pytest_pprank.oplog.file import (
    PAYLOAD_OFFSET,
    Operation,
    Record,
    Site,
    parse_record,
    to_operation,
)
from pytest_pprank.trace.file import (
    FILE_BYTES,
    HEAD_BYTES,
    SEGMENT_BYTES,
    SEGMENTS,
    VERSION,
    Tag,
    Trace,
    TraceEvent,
)

_LENGTH_AT = 8
"""Where a record has the length of its payload, in two bytes (see oplog.file)."""


def read_raw(path: Path) -> bytes:
    """Return the file's contents, for `parse`; empty if there is no file."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def parse(rank: int, raw: bytes) -> Trace:
    """Return the trace in `raw`; `problem` says why there is none."""
    head = parse_record(raw[:HEAD_BYTES]) if len(raw) == FILE_BYTES else None
    values = {} if head is None else json.loads(head.payload)
    if head is None or values.get("version") != VERSION:
        return Trace(rank, problem="this rank has left no trace")
    records = sorted(_records(raw, values["begun"]), key=lambda record: record.number)
    return Trace(
        rank=rank,
        serial=head.number,
        events=_events(records),
        operations=_operations(records),
        lost=records[0].number - values["begun"] - 1 if records else 0,
        faults=values["faults"],
        fault=values["fault"],
    )


def _records(raw: bytes, begun: int) -> Iterator[Record]:
    for segment in range(SEGMENTS):
        at = HEAD_BYTES + segment * SEGMENT_BYTES
        end, last = at + SEGMENT_BYTES, begun
        while at + PAYLOAD_OFFSET <= end:
            length = PAYLOAD_OFFSET + int.from_bytes(
                raw[at + _LENGTH_AT : at + _LENGTH_AT + 2], "little"
            )
            record = parse_record(raw[at : at + length])
            if record is None or record.number <= last:
                break  # not written completely, or left from before the segment was used again
            yield record
            at, last = at + length, record.number


def _events(records: list[Record]) -> tuple[TraceEvent, ...]:
    events: dict[int, TraceEvent] = {}
    for record in records:
        if record.state == Tag.END:
            number, more = json.loads(record.payload)
            if (begun := events.get(number)) is not None:
                details = {**begun.details, **more}
                events[number] = replace(begun, end=record.start, details=details)
        elif record.state in (Tag.EVENT, Tag.BEGIN):
            events[record.number] = _event(record)
    return tuple(events.values())


def _event(record: Record) -> TraceEvent:
    # a payload that passes both checksums was written by `trace.record` of this version
    kind, name, iteration, thread, details, sites = json.loads(record.payload)
    stack = tuple(Site(*site) for site in sites)
    end = record.start if record.state == Tag.EVENT else None
    number, start = record.number, record.start
    return TraceEvent(number, kind, name, start, end, iteration, thread, details, stack)


def _operations(records: list[Record]) -> tuple[Operation, ...]:
    found: dict[int, Operation] = {}
    for record in records:
        if record.state == Tag.OPERATION:
            inner = parse_record(record.payload)
            if inner is not None:
                operation = to_operation(inner)
                found[operation.number] = operation  # its last state
    return tuple(found.values())
