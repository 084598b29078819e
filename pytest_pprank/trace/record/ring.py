"""Writes the trace file of this rank (trace.file has its format, and says who reads it)."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from zlib import crc32

from pytest_pprank.oplog.file import PAYLOAD_OFFSET, pack_head
from pytest_pprank.oplog.record.map_file import map_file
from pytest_pprank.trace.file import (
    FILE_BYTES,
    HEAD_BYTES,
    SEGMENT_BYTES,
    SEGMENTS,
    VERSION,
    Tag,
)

_NOTHING = bytes(PAYLOAD_OFFSET)


class RingWriter:
    """Writes records into the ring at `path`. Thread-safe. Raises OSError without disk space.

    A copy inherited by a forked child writes nothing: what it does is not this rank's.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._map = map_file(path, FILE_BYTES)
        # reentrant: a signal handler or finalizer that interrupts may record something itself
        self._lock = threading.RLock()
        self._rank = rank
        self._serial = self._number = self._begun = self._faults = 0
        self._fault = ""
        self._at = HEAD_BYTES
        self._segment = 0
        self._write_head()
        os.register_at_fork(after_in_child=self._forget)

    def begin_test(self, serial: int) -> None:
        """Empty the ring."""
        with self._lock:
            self._serial, self._begun = serial, self._number
            self._faults, self._fault = 0, ""
            for segment in range(SEGMENTS):
                self._put(_offset(segment), _NOTHING)
            self._segment, self._at = 0, HEAD_BYTES
            self._write_head()

    def write(self, tag: Tag, payload: bytes, start: float, end: float = 0.0) -> int:
        """Append a record and return its number. `payload` is at most MOST_BYTES long."""
        with self._lock:
            length = PAYLOAD_OFFSET + len(payload)
            if self._at + length > _offset(self._segment + 1):
                self._segment = (self._segment + 1) % SEGMENTS
                self._at = _offset(self._segment)
            # taken before it is written: a record of an interrupting signal handler follows it
            self._number += 1
            number, at = self._number, self._at
            self._at += length
            self._put(at, pack_head(crc32(payload), len(payload), tag, number, start, end, payload))
            return number

    def fault(self, error: str) -> None:
        """Record that something could not be recorded."""
        with self._lock:
            self._faults += 1
            self._fault = error[:200]
            self._write_head()

    def _write_head(self) -> None:
        values = {
            "version": VERSION,
            "rank": self._rank,
            "begun": self._begun,
            "faults": self._faults,
            "fault": self._fault,
        }
        payload = json.dumps(values).encode()
        self._put(0, pack_head(crc32(payload), len(payload), 0, self._serial, 0.0, 0.0, payload))

    def _put(self, offset: int, data: bytes) -> None:
        if self._map is not None:
            self._map[offset : offset + len(data)] = data

    def _forget(self) -> None:
        self._map = None
        self._lock = threading.RLock()  # a thread of the parent may have held the old one


def _offset(segment: int) -> int:
    return HEAD_BYTES + segment * SEGMENT_BYTES
