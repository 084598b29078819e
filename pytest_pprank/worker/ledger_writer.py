"""Writes the ledger file of this rank (wire.ledger_file says what is in it, and who reads it).

A slot holds an operation from its issue until it is done *and* the slot is needed again: so the
file has all pending operations, and as many of the last finished ones as still fit.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from pytest_pprank.wire.ledger_file import (
    COUNTER_BYTES,
    CREATE,
    FILE_BYTES,
    FIRST_OPERATION,
    HEAD_BYTES,
    NOWHERE,
    OPERATION_BYTES,
    OPERATIONS,
    PAYLOAD_OFFSET,
    PENDING,
    STORE,
    VERSION,
    Channel,
    Site,
    State,
    channel_of,
    pack_head,
)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
NAME_LENGTH = 40
"""How much of torch's name of a group is in `Call.group`, before a colon."""
_NO_SLOT = -1
_NAME = 60
ISSUED, DROPPED = "issued", "dropped"
"""Events of an operation that others can listen to (worker.ledger.listen)."""
_NUMBERS_BYTES = 64  # three numbers with their commas
_TAIL_BYTES = OPERATION_BYTES - PAYLOAD_OFFSET - _NUMBERS_BYTES


class Call(NamedTuple):
    """What is known of an operation when it is issued; the fields of `Operation` in their order."""

    kind: str
    way: str
    group: str
    label: str
    ranks: tuple[int, ...]
    backend: str
    peer: int | None = None
    root: int | None = None
    tag: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    tensors: int = 0
    dtype: str = ""
    nbytes: int = 0
    detail: str = ""
    site: Site = NOWHERE
    via: Site | None = None
    thread: str = ""
    error: str = ""


class Entry:
    """An operation that has been noted, for telling the writer what becomes of it."""

    __slots__ = ("call", "counter", "crc", "length", "number", "place", "slot", "start", "state")

    def __init__(self, call: Call, counter: _Counter, number: int, serial: int) -> None:
        self.call = call
        self.counter = counter
        self.number = number
        self.place = (serial, counter.count - counter.before, counter.count)
        self.slot = _NO_SLOT
        self.state = State.ISSUED
        self.start = 0.0
        self.crc = self.length = 0


class _Counter:
    """How often a channel was used; `before` is what it stood at when the test began."""

    __slots__ = ("before", "count", "crc", "length", "offset", "serial")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.count = self.before = self.serial = 0
        self.crc = self.length = 0


_UNFINISHED = (State.ISSUED, State.WAITING, State.DROPPED)


class LedgerWriter:
    """Notes operations in the file at `path`. For any thread; raises OSError if there is no room.

    An inherited copy in a forked child writes nothing: its operations are not this rank's.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._map = _map_file(path)
        # reentrant: a signal handler or a finalizer may issue operations of its own
        self._lock = threading.RLock()
        self._rank = rank
        self._serial = self._number = self._before = self._unrecorded = 0
        self._uncounted = False
        self._fault = ""
        self._threads: set[str] = set()
        self._counters: dict[Channel, _Counter] = {}
        self._free_counters = deque(range(HEAD_BYTES, FIRST_OPERATION, COUNTER_BYTES))
        self._free = deque(range(OPERATIONS))
        self._finished: deque[Entry] = deque()
        self._by_slot: dict[int, Entry] = {}
        self._write_head()
        os.register_at_fork(after_in_child=self._forget)

    def begin_test(self, serial: int) -> None:
        """Count the turns of each channel, and the threads, anew."""
        with self._lock:
            self._serial = serial
            self._before = self._number
            self._threads.clear()
            self._write_head()

    def unfinished(self) -> bool:
        """Whether an operation of this test has not been seen to its end."""
        with self._lock:
            return self._number > self._before and any(
                entry.place[0] == self._serial and entry.state in _UNFINISHED
                for entry in self._by_slot.values()
            )

    def open_calls(self) -> list[Call]:
        """Return the operations of this test that nobody has waited for, and whose handle lives."""
        with self._lock:
            return [
                entry.call
                for entry in self._by_slot.values()
                if entry.place[0] == self._serial and entry.state is State.ISSUED
            ]

    def issue(self, call: Call, state: State) -> Entry:
        """Note a new operation."""
        with self._lock:
            if call.way != STORE and call.thread not in self._threads:
                self._threads.add(call.thread)
                self._write_head()
            self._number += 1
            entry = Entry(call, self._count(call), self._number, self._serial)
            entry.slot = self._take_slot()
            entry.state = state
            entry.start = time.monotonic()
            if entry.slot == _NO_SLOT:
                self._unrecorded += 1
                self._write_head()
            else:
                self._by_slot[entry.slot] = entry
                self._write_all(entry)
            return entry

    def set_state(self, entry: Entry, state: State, thread: str = "", error: str = "") -> None:
        """Note what has become of an operation, and by which thread if that is another one."""
        with self._lock:
            was_pending = entry.state in PENDING
            if state is entry.state or (state in PENDING and not was_pending):
                return  # somebody waits once more for what is done
            entry.state = state
            if entry.slot == _NO_SLOT:
                return
            if error or thread not in ("", entry.call.thread):
                entry.call = entry.call._replace(thread=thread or entry.call.thread, error=error)
                self._write_all(entry)
            else:
                self._write_state(entry)
            if state is State.WAITING and thread and thread not in self._threads:
                self._threads.add(thread)
                self._write_head()
            if was_pending and state not in PENDING:
                self._finished.append(entry)

    def refuse(self, entry: Entry, error: str) -> None:
        """Note that an operation failed before it began: it does not count for its channel."""
        with self._lock:
            counter = entry.counter
            counter.count -= 1
            if counter.offset:
                self._write_count(counter)
            entry.place = (entry.place[0], 0, 0)
            self.set_state(entry, State.FAILED, error=error)

    def set_running(self, running: Mapping[str, Sequence[bool]]) -> None:
        """Note which of the queued operations of each group, by name, still run, in their order.

        The last ones are the same on both sides; there may be more of them on either.
        """
        known: dict[str, list[Entry]] = {}
        with self._lock:
            for entry in sorted(self._by_slot.values(), key=lambda entry: entry.number):
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
        """Make room for the counts of others: nothing will be done in this group any more."""
        with self._lock:
            # the creations themselves are counted for ever: they tell one group from the next
            gone = [c for c in self._counters if c.group == group and c.way != CREATE]
            for channel in gone:
                counter = self._counters.pop(channel)
                if counter.offset:
                    self._put(counter.offset, bytes(PAYLOAD_OFFSET))
                    self._free_counters.append(counter.offset)
                    counter.offset = 0

    def fault(self, error: str) -> None:
        """Note that an operation, or what became of it, could not be noted."""
        with self._lock:
            self._unrecorded += 1
            self._fault = error[:200]
            self._write_head()

    def _count(self, call: Call) -> _Counter:
        channel = channel_of(call.way, call.group, call.backend, call.peer, call.tag)
        counter = self._counters.get(channel)
        if counter is None:
            counter = self._counters[channel] = self._add_counter(channel)
        if counter.serial != self._serial:
            counter.serial, counter.before = self._serial, counter.count
        counter.count += 1
        if counter.offset:
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

    def _take_slot(self) -> int:
        if self._free:
            return self._free.popleft()
        if not self._finished:
            return _NO_SLOT
        oldest = self._finished.popleft()
        slot, oldest.slot = oldest.slot, _NO_SLOT
        return slot

    def _write_head(self) -> None:
        values = {
            "version": VERSION,
            "rank": self._rank,
            "pid": os.getpid(),
            "serial": self._serial,
            "threads": [name[:60] for name in sorted(self._threads)[:16]],
            "unrecorded": self._unrecorded,
            "uncounted": self._uncounted,
            "fault": self._fault,
        }
        payload = _encode(values).encode(errors="replace")
        self._put(0, pack_head(crc32(payload), len(payload), 0, 0, 0.0, 0.0) + payload)

    def _write_count(self, counter: _Counter) -> None:
        head = pack_head(counter.crc, counter.length, 0, counter.count, 0.0, 0.0)
        self._put(counter.offset, head)

    def _write_all(self, entry: Entry) -> None:
        payload = _payload(entry.place, entry.call)
        entry.crc, entry.length = crc32(payload), len(payload)
        offset = FIRST_OPERATION + entry.slot * OPERATION_BYTES
        self._put(offset + PAYLOAD_OFFSET, payload)
        self._write_state(entry)

    def _write_state(self, entry: Entry) -> None:
        end = 0.0 if entry.state in PENDING or entry.state is State.RUNNING else time.monotonic()
        head = pack_head(entry.crc, entry.length, entry.state, entry.number, entry.start, end)
        if self._map is not None:
            offset = FIRST_OPERATION + entry.slot * OPERATION_BYTES
            self._map[offset : offset + PAYLOAD_OFFSET] = head

    def _put(self, offset: int, data: bytes) -> None:
        if self._map is not None:
            self._map[offset : offset + len(data)] = data

    def _forget(self) -> None:
        self._map = None
        self._lock = threading.RLock()  # it may have been held by a thread that is not here


def _map_file(path: Path) -> mmap.mmap | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # a hole that cannot be filled on a full disk would be a SIGBUS for the test
        os.posix_fallocate(descriptor, 0, FILE_BYTES)
        return mmap.mmap(descriptor, FILE_BYTES)
    finally:
        os.close(descriptor)


def _payload(place: tuple[int, int, int], call: Call) -> bytes:
    return b"[%d,%d,%d,%b" % (*place, _tail(call))


@lru_cache(1024)
def _tail(call: Call) -> bytes:
    """Return the payload after its first three numbers, without the less important parts of `call`
    if it is too long. Cached, because programs repeat themselves and encoding takes longest.
    """
    shorter: tuple[dict[str, Any], ...] = (
        {},
        {"via": None, "error": call.error[:100]},
        {"shapes": call.shapes[:2], "ranks": (), "detail": ""},
        {"shapes": (), "group": call.group[:_NAME], "label": call.label[:_NAME]},
    )
    for changes in shorter:
        call = call._replace(**changes) if changes else call
        tail = _encode(call)[1:].encode(errors="replace")
        if len(tail) <= _TAIL_BYTES:
            return tail
    last = Call(call.kind, call.way, call.group[:_NAME], "?", (), call.backend[:20], call.peer)
    return _encode(last)[1:].encode(errors="replace")
