"""The format of a trace: a file in which a rank keeps what it has done in the running test.

As the ledger (oplog.file), it is written through a shared memory map, so that it can be read while
the rank is blocked, stopped or dead; records have the same form and checksums. Unlike the ledger it
keeps events, not states: the file is a ring of segments, in which the newest events replace the
oldest ones, a whole segment at a time. Each test begins with an empty ring.

A reader takes the records of each segment from its beginning to the first that is not complete, or
that is older than the one before it: from there on the segment has only what it had before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from pytest_pprank.oplog.file import NOWHERE, Operation, Site

VERSION = 1
HEAD_BYTES = 4096
SEGMENT_BYTES = 256 * 1024
SEGMENTS = 32
FILE_BYTES = HEAD_BYTES + SEGMENTS * SEGMENT_BYTES
MOST_BYTES = 16 * 1024
"""The most bytes of one event; longer texts are shortened by the writer."""

Detail = str | int | float | bool | list[str] | None
"""A value of an event's details: a number, a text or a list of texts."""


class Tag(IntEnum):
    """What a record is."""

    EVENT = 1
    """Something at one moment."""
    BEGIN = 2
    """Something that has begun."""
    END = 3
    """The end of a BEGIN, whose number is the payload, with further details."""
    OPERATION = 4
    """A record of the ledger: an operation of torch.distributed that has ended."""


# Values of `TraceEvent.kind`. The page has a colour and a filter for each.
PHASE, FIXTURE, ITERATION, STATE = "phase", "fixture", "iteration", "state"
FORWARD, BATCH, MEMORY = "forward", "batch", "memory"
MEETING, TRANSFER, AGREEMENT, COPY = "meeting", "transfer", "agreement", "copy"
FAULT, FINDING, ERROR, LOG, OUTPUT = "fault", "finding", "error", "log", "output"


@dataclass(frozen=True)
class TraceEvent:
    """Something that a rank has done, at one moment or for some time (of the monotonic clock).

    `end`: equal to `start` for a moment; None for something that had not ended when the trace was
    read, or when the rank died. `iteration`: of the event loop that did it; None outside of one.
    `stack`: lines of code, innermost first.
    """

    number: int
    kind: str
    name: str
    start: float
    end: float | None
    iteration: int | None = None
    thread: str = ""
    details: dict[str, Detail] = field(default_factory=dict)
    stack: tuple[Site, ...] = ()

    @property
    def site(self) -> Site:
        """The line of code."""
        return self.stack[0] if self.stack else NOWHERE


@dataclass(frozen=True)
class Trace:
    """What one rank has done in one test, in the order of its beginnings."""

    rank: int
    serial: int = 0
    events: tuple[TraceEvent, ...] = ()
    operations: tuple[Operation, ...] = ()
    """Those that have ended; the ledger has the others."""
    lost: int = 0
    """The number of older records that had to make room."""
    faults: int = 0
    """The number of records that could not be made; `fault` has the last error."""
    fault: str = ""
    problem: str = ""
    """Why the trace could not be read; empty if it could."""


def trace_file(workdir: Path, rank: int) -> Path:
    """Return the file to which a rank writes its trace."""
    return workdir / f"trace{rank}.bin"
