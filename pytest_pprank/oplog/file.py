"""The ledger of a rank: a file in which it notes each torch.distributed operation as it happens.

The rank writes through a shared memory map, so that the controller can read the file without the
rank's help: while it is blocked inside C with the GIL, stopped, or dead (what a process has
written to such a map outlives it, even SIGKILL).

The file has a fixed size: a head, then counters, then operations; all are records of one form.
Every record carries checksums, so a reader that meets a half-written one looks again, and one
that its writer never finished is left out and counted. Nothing in here raises for what a file
holds, or for a file that is not there.
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
STORE = "store"
"""Ways of an operation; the last: a wait for a key of a store, which is no rank's in particular."""

_CRC = struct.Struct("<I")
# checksum and length of the payload, state, number, start, end
_BODY = struct.Struct("<IHBxQdd")
PAYLOAD_OFFSET = _CRC.size + _BODY.size
_EMPTY = bytes(PAYLOAD_OFFSET)
_MAX_RETRIES = 20  # in all: a rank cannot be half-way in many records, so the others are damaged
_RETRY_SECONDS = 0.001


class State(IntEnum):
    """What has become of an operation."""

    ISSUED = 1
    """Begun, and nobody waits for it (an ``isend`` whose handle has not been waited for)."""
    WAITING = 2
    """A thread is blocked in it, or in the ``wait`` of its handle."""
    QUEUED = 3
    """Handed to a device, which works it off by itself: the rank need not know when it is done."""
    COMPLETED = 4
    FAILED = 5
    DROPPED = 6
    """Its handle is gone without having been waited for; gloo then gives up a send or recv."""
    RUNNING = 7
    """Queued on a device, which was not done with it when the rank last took stock."""


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
    """What is counted: the messages one way between two ranks, or the collectives of a group.

    `peer` is a global rank; None for collectives, and for a recv from any rank.
    """

    way: str
    group: str
    peer: int | None = None
    tag: int = 0

    def counterpart(self, rank: int) -> Channel:
        """Return the channel of `rank`'s peer whose n-th operation meets the n-th of this one,
        which is `rank`'s. A recv from any rank may be met by each of them, and a send by one.
        """
        if self.way not in (SEND, RECV):
            return self
        return Channel(RECV if self.way == SEND else SEND, self.group, rank, self.tag)


@dataclass(frozen=True)
class Call:
    """What is known of an operation when it is issued. Ranks are global."""

    kind: str
    """``send``, ``recv``, ``all_reduce``, ``barrier``, ``new_group``, ..."""
    way: str
    """COLLECTIVE, SEND, RECV, CREATE (of a group) or STORE."""
    group: str
    """Its name, the same on all members; another one each time a name is used again."""
    label: str
    """The group in words: ``default group``."""
    ranks: tuple[int, ...]
    """The members of the group; empty if they are not known."""
    backend: str
    peer: int | None = None
    root: int | None = None
    tag: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    tensors: int = 0
    """How many tensors there are: `shapes` has only the first ones."""
    dtype: str = ""
    nbytes: int = 0
    detail: str = ""
    """What else tells it from others of its kind: the reduction, for example."""
    site: Site = NOWHERE
    """The first frame outside torch, this plugin, and what was named as plumbing."""
    via: Site | None = None
    """The first frame outside torch and this plugin, where that is another one."""
    thread: str = ""
    """The thread that issued it, or that waits for it now."""
    error: str = ""
    """The first line of what it raised."""

    @property
    def channel(self) -> Channel:
        """What it is counted on."""
        return channel_of(self.way, self.group, self.backend, self.peer, self.tag)


CALL_FIELDS = tuple(Call.__dataclass_fields__)
"""In the order in which they stand in a record."""


@dataclass(frozen=True, kw_only=True)
class Operation(Call):
    """One operation of torch.distributed on one rank. Times are monotonic."""

    number: int
    """The n-th operation of this rank since its ledger began; never used twice."""
    state: State
    start: float
    end: float
    """0.0 while it is pending."""
    serial: int
    """The test it belongs to."""
    turn: int
    """The n-th on its channel in this test: what people count."""
    sequence: int
    """The n-th on its channel since its group was created: what pairs it with other ranks'."""

    @property
    def pending(self) -> bool:
        """Whether it is still to be done, as far as the rank knows."""
        return self.state in PENDING or self.state is State.RUNNING


@dataclass(frozen=True)
class Ledger:
    """What the ledger of one rank said when it was read."""

    rank: int
    pid: int = 0
    serial: int = 0
    """The test that runs, or ran last."""
    threads: tuple[str, ...] = ()
    """The threads that have done distributed operations in this test."""
    operations: tuple[Operation, ...] = ()
    """All pending ones and the last of the others, of earlier tests too, in the order of issue."""
    counts: dict[Channel, int] = field(default_factory=dict)
    """How many operations each channel has had since its group was created."""
    unrecorded: int = 0
    """Operations that were not noted, because too many were pending (or recording failed)."""
    fault: str = ""
    """The last error while recording, if there was one."""
    uncounted: bool = False
    """Whether channels are missing in `counts`, because there were too many."""
    torn: int = 0
    """Records that cannot be read."""
    problem: str = ""
    """Why nothing could be read; empty if all is well."""

    @property
    def complete(self) -> bool:
        """Whether conclusions may be drawn from what is not in it."""
        return not (self.unrecorded or self.uncounted or self.torn or self.problem)

    @cached_property
    def pending(self) -> tuple[Operation, ...]:
        """The operations that are not done, of this test or left over from earlier ones."""
        return tuple(operation for operation in self.operations if operation.pending)

    @cached_property
    def waiting(self) -> tuple[Operation, ...]:
        """The operations that a thread is blocked in."""
        return tuple(op for op in self.operations if op.state is State.WAITING)

    def count(self, channel: Channel) -> int:
        """How many operations `channel` has had."""
        return self.counts.get(channel, 0)


class Record(NamedTuple):
    """A record as it stands in the file."""

    state: int
    number: int
    start: float
    end: float
    payload: bytes


def ledger_file(workdir: Path, rank: int) -> Path:
    """Return the file into which a rank writes its ledger."""
    return workdir / f"ledger{rank}.bin"


def flight_recorder_file(workdir: Path, rank: int) -> Path:
    """Return the file into which a rank writes the dump of NCCL's flight recorder, as JSON."""
    return workdir / f"flight_recorder{rank}.json"


def channel_of(way: str, group: str, backend: str, peer: int | None, tag: int) -> Channel:
    """Return what an operation is counted on: NCCL pairs messages by order alone, without tags."""
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
    """Return what comes before a record's payload, and the payload if it is to be written too."""
    body = _BODY.pack(payload_crc, length, state, number, start, end)
    return _CRC.pack(crc32(body)) + body + payload


def read_ledger(path: Path) -> Ledger:
    """Read the ledger at `path`, whoever writes to it meanwhile."""
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
        # a rank counts an operation before it notes it: read the other way round, so that no
        # operation seems to be missing in the counts
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
                yield _to_operation(record)

    def _read(self, offset: int, size: int) -> Record | None:
        """Return a record; None where there is none, or (counted) none that can be read."""
        raw = self._image[offset : offset + size]
        while raw[:PAYLOAD_OFFSET] != _EMPTY:
            record = _parse(raw)
            if record is not None:
                return record
            if not (raw and self._retries):
                self.torn += 1
                break
            self._retries -= 1
            time.sleep(_RETRY_SECONDS)
            raw = os.pread(self._descriptor, size, offset)
        return None


def _parse(raw: bytes) -> Record | None:
    if len(raw) < PAYLOAD_OFFSET:
        return None
    body = raw[_CRC.size : PAYLOAD_OFFSET]
    payload_crc, length, state, number, start, end = _BODY.unpack(body)
    payload = raw[PAYLOAD_OFFSET : PAYLOAD_OFFSET + length]
    if _CRC.unpack_from(raw)[0] != crc32(body) or payload_crc != crc32(payload):
        return None
    return Record(state, number, start, end, payload)


def _from_json(payload: bytes) -> Any:
    # whatever passes both checksums was written by `oplog.record.writer` of this very version
    return json.loads(payload.decode(errors="replace"))


def _to_operation(record: Record) -> Operation:
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
    """Return the fields of a `Call`. Cached, as the same ones come again."""
    values = dict(zip(CALL_FIELDS, _from_json(b"[" + tail), strict=True))
    values["ranks"] = tuple(values["ranks"])
    values["shapes"] = tuple(map(tuple, values["shapes"]))
    values["site"] = Site(*values["site"])
    values["via"] = Site(*values["via"]) if values["via"] else None
    return tuple(values.values())
