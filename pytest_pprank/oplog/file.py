"""The format of a ledger: a file to which a rank records its torch.distributed operations.

The rank writes through a shared memory map, so that the controller can read the file without the
rank's help: while the rank is blocked in C with the GIL held, stopped, or dead. What a process has
written to such a map survives the process, even a SIGKILL.

The file has a fixed size: a head, then counters, then operations, all as records of one form. Every
record has checksums. A reader that finds a half-written record reads it again; a record that its
writer never finished is left out and counted. No function here raises because of a file's contents,
or because a file does not exist.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

VERSION = 2
HEAD_BYTES = 4096
COUNTER_BYTES = 192
COUNTERS = 512
OPERATION_BYTES = 1024
OPERATIONS = 512
FIRST_OPERATION = HEAD_BYTES + COUNTERS * COUNTER_BYTES
FILE_BYTES = FIRST_OPERATION + OPERATIONS * OPERATION_BYTES

COLLECTIVE, SEND, RECV, CREATE = "collective", "send", "recv", "create"
"""Values of `Call.way`."""
STORE = "store"
"""A wait for a key of a store, which is no particular rank's."""

_CRC = struct.Struct("<I")
# checksum and length of the payload, state, number, start, end
_BODY = struct.Struct("<IHBxQdd")
PAYLOAD_OFFSET = _CRC.size + _BODY.size
_EMPTY = bytes(PAYLOAD_OFFSET)
_MAX_RETRIES = 20  # in total: few records can be half-written, any further ones are damaged
_RETRY_SECONDS = 0.001


class State(IntEnum):
    """The state of an operation."""

    ISSUED = 1
    """Begun, and not waited for (an ``isend`` whose handle has not been waited for)."""
    WAITING = 2
    """A thread is blocked in it, or in the ``wait`` of its handle."""
    QUEUED = 3
    """Queued on a device, which executes it by itself: the rank may not know when it is done."""
    COMPLETED = 4
    FAILED = 5
    DROPPED = 6
    """Its handle was deleted before anything waited for it; gloo then aborts a send or recv."""
    RUNNING = 7
    """Queued on a device, which had not finished it at the last update of the ledger."""


PENDING = frozenset({State.ISSUED, State.WAITING})


class Site(NamedTuple):
    """A line of code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line} in {self.function}"


NOWHERE = Site("", 0, "")


class Channel(NamedTuple):
    """What operations are counted by: one direction of messages, or a group's collectives.

    A message channel is one direction between two ranks, in one group and with one tag. `peer` is a
    global rank; None for collectives, and for a recv from any rank.
    """

    way: str
    group: str
    peer: int | None = None
    tag: int = 0

    def counterpart(self, rank: int) -> Channel:
        """Return the peer's channel whose n-th operation is paired with this one's n-th.

        `rank`: the rank that this channel belongs to. A recv from any rank may be paired with a
        send of any of them, and a send with such a recv.
        """
        if self.way not in (SEND, RECV):
            return self
        return Channel(RECV if self.way == SEND else SEND, self.group, rank, self.tag)


@dataclass(frozen=True)
class Call:
    """The properties of an operation that are known when it is issued. Ranks are global."""

    kind: str
    """``send``, ``recv``, ``all_reduce``, ``barrier``, ``new_group``, ..."""
    way: str
    """COLLECTIVE, SEND, RECV, CREATE (of a group) or STORE."""
    group: str
    """The group's name, the same on all members, and a new one each time torch reuses a name."""
    label: str
    """The group in words: ``default group``."""
    ranks: tuple[int, ...]
    """The members of the group; empty if unknown."""
    backend: str
    peer: int | None = None
    root: int | None = None
    tag: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    tensors: int = 0
    """The number of tensors; `shapes` has only the first ones."""
    dtype: str = ""
    nbytes: int = 0
    detail: str = ""
    """What else distinguishes it from others of its kind: the reduction, for example."""
    site: Site = NOWHERE
    """The first frame outside torch, this plugin, and the files named as plumbing."""
    via: Site | None = None
    """The first frame outside torch and this plugin, if it is another one than `site`."""
    thread: str = ""
    """The thread that issued it, or that waits for it now."""
    error: str = ""
    """The first line of the exception it raised."""

    @property
    def channel(self) -> Channel:
        """The channel it is counted on."""
        return channel_of(self.way, self.group, self.backend, self.peer, self.tag)


CALL_FIELDS = tuple(Call.__dataclass_fields__)
"""The fields of `Call`, in the order in which a record has them."""


@dataclass(frozen=True, kw_only=True)
class Operation(Call):
    """One operation of torch.distributed on one rank. Times are of the monotonic clock."""

    number: int
    """Its number among all operations of this rank since the ledger began; unique."""
    state: State
    start: float
    end: float
    """0.0 while it is pending."""
    serial: int
    """The number of the test it belongs to."""
    turn: int
    """Its number on its channel in this test, as shown to users."""
    sequence: int
    """Its number on its channel since the group was created; it pairs operations of ranks."""

    @property
    def pending(self) -> bool:
        """Whether it is not done yet, as far as the rank knows."""
        return self.state in PENDING or self.state is State.RUNNING


@dataclass(frozen=True)
class Ledger:
    """The contents of one rank's ledger at the time it was read."""

    rank: int
    pid: int = 0
    serial: int = 0
    """The number of the running test, or of the last one."""
    threads: tuple[str, ...] = ()
    """The names of the threads that have issued operations in this test."""
    operations: tuple[Operation, ...] = ()
    """All pending operations and the last finished ones, also of earlier tests, in issue order."""
    counts: dict[Channel, int] = field(default_factory=dict)
    """The number of operations on each channel since its group was created."""
    unrecorded: int = 0
    """The number of operations not recorded: too many were pending, or recording failed."""
    fault: str = ""
    """The last error while recording, if there was one."""
    uncounted: bool = False
    """Whether `counts` lacks channels, because there were too many."""
    torn: int = 0
    """The number of records that cannot be read."""
    problem: str = ""
    """Why the ledger could not be read; empty if it could."""

    @property
    def complete(self) -> bool:
        """Whether conclusions may be drawn from what is missing in it."""
        return not (self.unrecorded or self.uncounted or self.torn or self.problem)

    @cached_property
    def pending(self) -> tuple[Operation, ...]:
        """The operations that are not done, of this test and of earlier ones."""
        return tuple(operation for operation in self.operations if operation.pending)

    @cached_property
    def waiting(self) -> tuple[Operation, ...]:
        """The operations that a thread is blocked in."""
        return tuple(op for op in self.operations if op.state is State.WAITING)

    def count(self, channel: Channel) -> int:
        """Return the number of operations on `channel`."""
        return self.counts.get(channel, 0)


class Record(NamedTuple):
    """A record of the file, decoded."""

    state: int
    number: int
    start: float
    end: float
    payload: bytes


def ledger_file(workdir: Path, rank: int) -> Path:
    """Return the file to which a rank writes its ledger."""
    return workdir / f"ledger{rank}.bin"


def flight_recorder_file(workdir: Path, rank: int) -> Path:
    """Return the file to which a rank writes the dump of NCCL's flight recorder, as JSON."""
    return workdir / f"flight_recorder{rank}.json"


def channel_of(way: str, group: str, backend: str, peer: int | None, tag: int) -> Channel:
    """Return the channel of an operation. NCCL pairs messages by order alone, without tags."""
    if way not in (SEND, RECV):
        return Channel(way, group)
    return Channel(way, group, peer, 0 if "nccl" in backend else tag)


def pack_head(
    payload_crc: int,
    length: int,
    state: int,
    number: int,
    start: float,
    end: float,
    payload: bytes = b"",
) -> bytes:
    """Return the head of a record, followed by its payload if that is given."""
    body = _BODY.pack(payload_crc, length, state, number, start, end)
    return _CRC.pack(crc32(body)) + body + payload


def read_ledger(path: Path) -> Ledger:
    """Read the ledger at `path`, also while its rank writes to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        return Ledger(-1, problem=f"no ledger: {error.strerror}")
    try:
        return _Reader(descriptor).ledger()
    except OSError as error:
        return Ledger(-1, problem=f"the ledger cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)


class _Reader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # a rank counts an operation before recording it; reading in the opposite order makes
        # sure that the counts include every operation that was read
        operations = os.pread(descriptor, FILE_BYTES, FIRST_OPERATION)
        self._image = os.pread(descriptor, FIRST_OPERATION, 0) + operations
        self.torn = 0
        self._retries = _MAX_RETRIES

    def ledger(self) -> Ledger:
        head = self._read(0, HEAD_BYTES)
        values = _from_json(head.payload) if head is not None else None
        if head is None or not isinstance(values, dict) or values.get("version") != VERSION:
            return Ledger(-1, problem="the ledger's head is not there yet, or damaged")
        operations = sorted(self._operations(), key=lambda operation: operation.number)
        return Ledger(
            rank=values["rank"],
            pid=values["pid"],
            serial=head.number,
            threads=tuple(values["threads"]),
            operations=tuple(operations),
            counts=dict(self._counts()),
            unrecorded=values["unrecorded"],
            uncounted=values["uncounted"],
            fault=values["fault"],
            torn=self.torn,
        )

    def _counts(self) -> Iterator[tuple[Channel, int]]:
        for index in range(COUNTERS):
            record = self._read(HEAD_BYTES + index * COUNTER_BYTES, COUNTER_BYTES)
            if record is not None:
                yield Channel(*_from_json(record.payload)), record.number

    def _operations(self) -> Iterator[Operation]:
        for index in range(OPERATIONS):
            record = self._read(FIRST_OPERATION + index * OPERATION_BYTES, OPERATION_BYTES)
            if record is not None:
                yield to_operation(record)

    def _read(self, offset: int, size: int) -> Record | None:
        """Return a record; None if the slot is empty, or (counted in `torn`) unreadable."""
        raw = self._image[offset : offset + size]
        while raw[:PAYLOAD_OFFSET] != _EMPTY:
            record = parse_record(raw)
            if record is not None:
                return record
            if not (raw and self._retries):
                self.torn += 1
                break
            self._retries -= 1
            time.sleep(_RETRY_SECONDS)
            raw = os.pread(self._descriptor, size, offset)
        return None


def parse_record(raw: bytes) -> Record | None:
    """Return the record at the beginning of `raw`; None if it is not complete."""
    if len(raw) < PAYLOAD_OFFSET:
        return None
    body = raw[_CRC.size : PAYLOAD_OFFSET]
    payload_crc, length, state, number, start, end = _BODY.unpack(body)
    payload = raw[PAYLOAD_OFFSET : PAYLOAD_OFFSET + length]
    if _CRC.unpack_from(raw)[0] != crc32(body) or payload_crc != crc32(payload):
        return None
    return Record(state, number, start, end, payload)


def _from_json(payload: bytes) -> Any:
    # a payload that passes both checksums was written by `oplog.record.writer` of this version
    return json.loads(payload.decode(errors="replace"))


def to_operation(record: Record) -> Operation:
    """Return the operation that a record describes."""
    serial, turn, sequence, tail = record.payload[1:].split(b",", 3)
    return Operation(
        *_call(tail),
        number=record.number,
        state=State(record.state),
        start=record.start,
        end=record.end,
        serial=int(serial),
        turn=int(turn),
        sequence=int(sequence),
    )


@lru_cache(4096)
def _call(tail: bytes) -> tuple[Any, ...]:
    """Return the fields of a `Call`. Cached, because the same payloads recur."""
    values = dict(zip(CALL_FIELDS, _from_json(b"[" + tail), strict=True))
    values["ranks"] = tuple(values["ranks"])
    values["shapes"] = tuple(map(tuple, values["shapes"]))
    values["site"] = Site(*values["site"])
    values["via"] = Site(*values["via"]) if values["via"] else None
    return tuple(values.values())
