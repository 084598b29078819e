"""Writes the ledger file of this rank (oplog.file has its format, and says who reads it).

A slot of the file keeps an operation until the operation is done *and* the slot is needed again. So
the file has all pending operations, and as many of the last finished ones as still fit.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

from pytest_pprank.oplog.file import (
    CALL_FIELDS,
    COLLECTIVE,
    COUNTER_BYTES,
    CREATE,
    FILE_BYTES,
    FIRST_OPERATION,
    HEAD_BYTES,
    OPERATION_BYTES,
    PAYLOAD_OFFSET,
    PENDING,
    STORE,
    VERSION,
    Call,
    Channel,
    State,
    pack_head,
)
from pytest_pprank.oplog.record.map_file import map_file

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
NAME_LENGTH = 40
"""How many characters of torch's name of a group are in `Call.group`, before a colon."""
_NO_ROOM = 0
_NAME = 60
ISSUED, REFUSED, FAILED, DROPPED, CREATED = "issued", "refused", "failed", "dropped", "created"
"""Events of an operation that can be listened to (oplog.record.ledger.listen)."""
_NUMBERS_BYTES = 64  # three numbers with their commas
_TAIL_BYTES = OPERATION_BYTES - PAYLOAD_OFFSET - _NUMBERS_BYTES


class EncodedCall:
    """A call with its channel and its serialised fields; shared by all equal calls."""

    __slots__ = ("call", "channel", "tail")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.channel = call.channel
        self.tail = _tail(call)


class Entry:
    """A recorded operation, by which the writer is informed of its further states.

    `offset` is its position in the file: _NO_ROOM if it has none, or has lost it. `numbers`: serial
    of the test, turn and sequence (see oplog.file.Operation).
    """

    __slots__ = (
        "call",
        "counter",
        "crc",
        "length",
        "number",
        "numbers",
        "offset",
        "start",
        "state",
    )

    def __init__(
        self, call: Call, counter: _Counter, number: int, serial: int, state: State
    ) -> None:
        self.call = call
        self.counter = counter
        self.number = number
        self.numbers = (serial, counter.count - counter.before, counter.count)
        self.state = state
        self.start = time.monotonic()
        self.offset = _NO_ROOM
        self.crc = self.length = 0


class _Counter:
    """The number of operations on a channel; `before` is its value when the test began."""

    __slots__ = ("before", "count", "crc", "length", "offset", "serial")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.count = self.before = self.serial = 0
        self.crc = self.length = 0


_WAITING, _RUNNING = State.WAITING, State.RUNNING
_UNFINISHED = (State.ISSUED, State.WAITING, State.DROPPED)


class LedgerWriter:
    """Records operations in the file at `path`. Thread-safe. Raises OSError without disk space.

    A copy inherited by a forked child writes nothing: its operations are not this rank's.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._map = map_file(path, FILE_BYTES)
        # reentrant: a signal handler or finalizer that interrupts may issue operations itself
        self._lock = threading.RLock()
        self._rank = rank
        self._serial = self._number = self._before = self._unrecorded = 0
        self._uncounted = self._erred = False
        self._fault = ""
        self._threads: set[str] = set()
        self._counters: dict[Channel, _Counter] = {}
        self._free_counters = deque(range(HEAD_BYTES, FIRST_OPERATION, COUNTER_BYTES))
        self._free = deque(range(FIRST_OPERATION, FILE_BYTES, OPERATION_BYTES))
        self._finished: deque[Entry] = deque()
        self._by_offset: dict[int, Entry] = {}
        self.tee: Callable[[bytes], None] | None = None
        """Called with the record of each operation that has ended."""
        self._write_head()
        os.register_at_fork(after_in_child=self._forget)

    def begin_test(self, serial: int) -> None:
        """Restart the turns of each channel, and the list of threads."""
        with self._lock:
            self._serial = serial
            self._before = self._number
            self._erred = False
            self._threads.clear()
            self._write_head()

    def unfinished(self) -> bool:
        """Return whether an operation of this test was never seen to end."""
        with self._lock:
            return self._number > self._before and any(
                entry.numbers[0] == self._serial and entry.state in _UNFINISHED
                for entry in self._by_offset.values()
            )

    @property
    def erred(self) -> bool:
        """Whether an operation between ranks, or a wait for one, has raised in this test."""
        return self._erred

    @property
    def threads(self) -> frozenset[str]:
        """The names of the threads that have issued operations in this test."""
        return frozenset(self._threads)

    def collectives(self) -> dict[str, int]:
        """Return the number of collectives of each group, by its identity."""
        with self._lock:
            counters = self._counters.items()
            return {c.group: counter.count for c, counter in counters if c.way == COLLECTIVE}

    def open_calls(self) -> list[Call]:
        """Return the operations of this test that were never waited for, and whose handle exists.

        A wait that raised counts as a wait.
        """
        with self._lock:
            return [
                entry.call
                for entry in self._by_offset.values()
                if entry.numbers[0] == self._serial
                and entry.state is State.ISSUED
                and not entry.call.error
            ]

    def issue(self, form: EncodedCall, state: State) -> Entry:
        """Record a new operation."""
        call = form.call
        with self._lock:
            if call.thread not in self._threads and call.way != STORE:
                self._add_thread(call.thread)
            self._number += 1
            counter = self._count(form.channel)
            entry = Entry(call, counter, self._number, self._serial, state)
            if self._free:
                entry.offset = self._free.popleft()
            elif self._finished:
                oldest = self._finished.popleft()
                entry.offset, oldest.offset = oldest.offset, _NO_ROOM
            else:
                self._unrecorded += 1
                self._write_head()
                return entry
            self._by_offset[entry.offset] = entry
            self._write_all(entry, form.tail)
            return entry

    def set_state(self, entry: Entry, state: State, thread: str = "", error: str = "") -> None:
        """Record the state of an operation, and the thread if another one than before."""
        with self._lock:
            before = entry.state
            if state is before or (state in PENDING and before not in PENDING):
                return  # another wait for an operation that is done
            entry.state = state
            self._erred |= bool(error and entry.numbers[1] and entry.call.way != STORE)
            if entry.offset == _NO_ROOM:
                return
            if error or (thread and thread != entry.call.thread):
                entry.call = replace(entry.call, thread=thread or entry.call.thread, error=error)
                self._write_all(entry, _tail(entry.call))
            else:
                self._write_state(entry)
            if state is _WAITING and entry.call.thread not in self._threads:
                self._add_thread(entry.call.thread)
            if before in PENDING and state not in PENDING:
                self._finished.append(entry)
            if self.tee is not None and state not in PENDING:
                self._pass_on(entry, self.tee)

    def refuse(self, entry: Entry, error: str) -> None:
        """Record that an operation failed before it began: its channel does not count it."""
        with self._lock:
            counter = entry.counter
            counter.count -= 1
            self._write_count(counter)
            entry.numbers = (entry.numbers[0], 0, 0)
            self.set_state(entry, State.FAILED, error=error)

    def set_running(self, running: Mapping[str, Sequence[bool]]) -> None:
        """Record which queued operations still run, by group name, in issue order.

        The last entries of the ledger and of `running` are the same operations; either may have
        more.
        """
        known: dict[str, list[Entry]] = {}
        with self._lock:
            for entry in sorted(self._by_offset.values(), key=lambda entry: entry.number):
                if "ccl" in entry.call.backend and entry.state is not State.FAILED:
                    known.setdefault(entry.call.group.rpartition(":")[0], []).append(entry)
            for group, runs in running.items():
                entries = known.get(group[:NAME_LENGTH], [])
                for entry, runs_on in zip(reversed(entries), reversed(runs), strict=False):
                    if not runs_on and entry.state is not State.WAITING:
                        self.set_state(entry, State.COMPLETED)
                    elif entry.state is State.QUEUED:
                        self.set_state(entry, State.RUNNING)

    def forget_group(self, group: str) -> None:
        """Free the counters of a group in which nothing will be issued any more."""
        with self._lock:
            # keep the count of creations: it distinguishes successive groups of one name
            gone = [c for c in self._counters if c.group == group and c.way != CREATE]
            for channel in gone:
                counter = self._counters.pop(channel)
                if counter.offset:
                    self._put(counter.offset, bytes(PAYLOAD_OFFSET))
                    self._free_counters.append(counter.offset)
                    counter.offset = 0

    def fault(self, error: str) -> None:
        """Record that an operation, or a state of it, could not be recorded."""
        with self._lock:
            self._unrecorded += 1
            self._fault = error[:200]
            self._write_head()

    def _count(self, channel: Channel) -> _Counter:
        counter = self._counters.get(channel)
        if counter is None:
            counter = self._counters[channel] = self._add_counter(channel)
        if counter.serial != self._serial:
            counter.serial, counter.before = self._serial, counter.count
        counter.count += 1
        self._write_count(counter)
        return counter

    def _add_counter(self, channel: Channel) -> _Counter:
        payload = _encode(channel).encode(errors="replace")
        if not self._free_counters or len(payload) > COUNTER_BYTES - PAYLOAD_OFFSET:
            self._uncounted = True
            self._write_head()
            return _Counter(0)
        counter = _Counter(self._free_counters.popleft())
        counter.crc, counter.length = crc32(payload), len(payload)
        self._put(counter.offset + PAYLOAD_OFFSET, payload)
        return counter

    def _add_thread(self, thread: str) -> None:
        self._threads.add(thread)
        self._write_head()

    def _write_head(self) -> None:
        threads = tuple(sorted(self._threads)[:16]) if self._threads else ()
        payload, crc = _head(self._rank, threads, self._unrecorded, self._uncounted, self._fault)
        # the serial changes with every test and is outside the payload, which is cached
        self._put(0, pack_head(crc, len(payload), 0, self._serial, 0.0, 0.0, payload))

    def _write_count(self, counter: _Counter) -> None:
        if counter.offset and self._map is not None:
            head = pack_head(counter.crc, counter.length, 0, counter.count, 0.0, 0.0)
            self._map[counter.offset : counter.offset + PAYLOAD_OFFSET] = head

    def _write_all(self, entry: Entry, tail: bytes) -> None:
        payload = b"[%d,%d,%d,%b" % (*entry.numbers, tail)
        entry.crc, entry.length = crc32(payload), len(payload)
        self._write_state(entry, payload)

    def _write_state(self, entry: Entry, payload: bytes = b"") -> None:
        state = entry.state
        end = 0.0 if state in PENDING or state is _RUNNING else time.monotonic()
        data = pack_head(entry.crc, entry.length, state, entry.number, entry.start, end, payload)
        if self._map is not None:
            self._map[entry.offset : entry.offset + len(data)] = data

    def _pass_on(self, entry: Entry, tee: Callable[[bytes], None]) -> None:
        if self._map is not None:
            tee(self._map[entry.offset : entry.offset + PAYLOAD_OFFSET + entry.length])

    def _put(self, offset: int, data: bytes) -> None:
        if self._map is not None:
            self._map[offset : offset + len(data)] = data

    def _forget(self) -> None:
        self._map = None
        self._lock = threading.RLock()  # a thread of the parent may have held the old one


@lru_cache(64)
def _head(
    rank: int, threads: tuple[str, ...], unrecorded: int, uncounted: bool, fault: str
) -> tuple[bytes, int]:
    """Return the payload of the file's head, and its checksum."""
    values = {
        "version": VERSION,
        "rank": rank,
        "pid": os.getpid(),
        "threads": [name[:60] for name in threads],
        "unrecorded": unrecorded,
        "uncounted": uncounted,
        "fault": fault,
    }
    payload = _encode(values).encode(errors="replace")
    return payload, crc32(payload)


@lru_cache(1024)
def _tail(call: Call) -> bytes:
    """Return the serialised fields of a call, for the payload after its three numbers.

    If it is too long, less important fields are shortened or left out. Cached, because encoding is
    slow.
    """
    shorter: tuple[dict[str, Any], ...] = (
        {},
        {"via": None, "error": call.error[:100]},
        {"shapes": call.shapes[:2], "ranks": (), "detail": ""},
        {"shapes": (), "group": call.group[:_NAME], "label": call.label[:_NAME]},
    )
    for changes in shorter:
        call = replace(call, **changes) if changes else call
        tail = _encoded(call)
        if len(tail) <= _TAIL_BYTES:
            return tail
    return _encoded(
        Call(call.kind, call.way, call.group[:_NAME], "?", (), call.backend[:20], call.peer)
    )


def _encoded(call: Call) -> bytes:
    values = [getattr(call, name) for name in CALL_FIELDS]
    return _encode(values)[1:].encode(errors="replace")
