"""What a rank waits in, and what the waits of all ranks together show (see `wait_graph`)."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pprank.oplog.file import RECV, SEND, Operation, State
from pytest_pprank.oplog.read.text import describe
from pytest_pprank.words import plural_ranks


@dataclass(frozen=True)
class Waits:
    """What the ledgers show about ranks that wait."""

    lines: tuple[str, ...] = ()
    deadlock: tuple[int, ...] = ()
    """Ranks that wait for each other in a cycle and for nothing else: the wait cannot end."""
    mismatch: bool = False
    """Whether ranks have paired operations that do not match."""
    hopeless: frozenset[int] = frozenset()
    """Ranks in an operation that needs a rank which has left and has not issued its part."""
    stuck: frozenset[int] = frozenset()
    """All ranks that can never go on: `deadlock`, `hopeless`, and ranks that wait for those."""
    key: frozenset[tuple[int, int]] = frozenset()
    """(rank, operation number) of everything that the other fields are derived from.

    Numbers of meetings are negative.
    """
    blocked: tuple[Blocked, ...] = ()
    """Each rank that is blocked, and in what, as far as it has not left the test."""


@dataclass(frozen=True)
class InMeeting:
    """A rank that waits in a meeting (`words`: in which one) for all ranks in `missing`.

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
    """Whether each rank in `missing` is needed, or any one is enough (recv from any rank)."""
    certain: bool
    """Whether the operation surely cannot end without them."""
    lost: bool = False
    """Whether its message was sent by a handle that was deleted, so that it may never arrive.

    If all other ranks wait, too, and for long enough, it has not arrived.
    """

    @property
    def part(self) -> tuple[int, int]:
        """What it contributes to `Waits.key`."""
        return self.rank, self.operation.number

    @property
    def waiter(self) -> str:
        """The rank, or its device, in words."""
        on_device = self.operation.state is State.RUNNING
        return f"the device of rank {self.rank}" if on_device else f"rank {self.rank}"

    def where(self, whom: int) -> str:
        """Return what the rank waits in, and for whom, in words."""
        words = describe(self.operation)
        return words if self.operation.peer is not None else f"{words} for rank {whom}"


@dataclass(frozen=True)
class MeetingWait:
    """A rank that is blocked in a meeting, and issues no operation meanwhile."""

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


@dataclass(frozen=True)
class Unmet:
    """An operation of `rank` for which the ranks in `missing` have not issued their part."""

    rank: int
    operation: Operation
    missing: tuple[int, ...]

    @property
    def lack(self) -> str:
        """What the other ranks have not done, in words."""
        did_not = {SEND: "receive", RECV: "send"}.get(self.operation.way, "come to")
        return f"{plural_ranks(self.missing)} did not {did_not}"

    def __str__(self) -> str:
        return f"{describe(self.operation)}, which {self.lack}"


Blocked = Wait | MeetingWait
"""A rank that is blocked, in an operation or in a meeting."""
