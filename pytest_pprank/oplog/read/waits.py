"""What a rank waits in, and what is found by comparing all that wait (see `wait_graph`)."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pprank.oplog.file import Operation, State
from pytest_pprank.oplog.read.text import describe


@dataclass(frozen=True)
class Waits:
    """What the ledgers say about ranks that wait."""

    lines: tuple[str, ...] = ()
    deadlock: tuple[int, ...] = ()
    """Ranks that wait for each other in a circle, and for nothing else: it cannot end."""
    mismatch: bool = False
    """Whether ranks have come to the same place with different operations."""
    hopeless: frozenset[int] = frozenset()
    """Ranks in an operation that needs a rank which is gone and has not issued its part."""
    stuck: frozenset[int] = frozenset()
    """All that can never go on: `deadlock`, `hopeless`, and those that wait for these."""
    key: frozenset[tuple[int, int]] = frozenset()
    """(rank, operation number) of all that deadlock, mismatch, hopeless and stuck rest upon.

    Numbers of meetings are below 0."""


@dataclass(frozen=True)
class InMeeting:
    """A rank that waits in a meeting of the test (`words`: in which one) for all of `missing`.

    `number` is that of the meeting on this rank.
    """

    words: str
    number: int
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """A rank that is blocked in an operation."""

    rank: int
    operation: Operation
    missing: tuple[int, ...]
    """Members of the group that have not issued their part."""
    needs_all: bool
    """Whether each of `missing` is needed; else any one of them is enough (recv from any)."""
    certain: bool
    """Whether the operation surely cannot end without them, and no thread may change that."""
    lost: bool = False
    """Whether its message was sent, by a handle that is gone: it may not, but could still arrive.
    If all others wait, too, and for long enough, it has not."""

    @property
    def part(self) -> tuple[int, int]:
        """What it contributes to a `key`."""
        return self.rank, self.operation.number

    @property
    def waiter(self) -> str:
        """Who waits, in words."""
        on_device = self.operation.state is State.RUNNING
        return f"the device of rank {self.rank}" if on_device else f"rank {self.rank}"

    def where(self, whom: int) -> str:
        """Say in what it waits, and for whom."""
        words = describe(self.operation)
        return words if self.operation.peer is not None else f"{words} for rank {whom}"


@dataclass(frozen=True)
class MeetingWait:
    """A rank that is blocked in a meeting, and comes to no operation meanwhile."""

    rank: int
    meeting: InMeeting
    needs_all = certain = True
    lost = False

    @property
    def missing(self) -> tuple[int, ...]:
        return self.meeting.missing

    @property
    def part(self) -> tuple[int, int]:
        return self.rank, -1 - self.meeting.number

    @property
    def waiter(self) -> str:
        return f"rank {self.rank}"

    def where(self, whom: int) -> str:
        return f"{self.meeting.words} for rank {whom}"


Blocked = Wait | MeetingWait
"""A rank that is blocked, in either way."""
