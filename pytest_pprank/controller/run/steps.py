"""What the state machine of a test run asks for, and what it is told was seen: values alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pytest_pprank.oplog.read.waits import InMeeting, Waits
from pytest_pprank.protocol.messages import Exchanged, GroupEnded

# to be done at once, in this order


@dataclass(frozen=True)
class Answer:
    """Answer a meeting of some ranks."""

    ranks: tuple[int, ...]
    message: Exchanged


@dataclass(frozen=True)
class PhaseOver:
    """Keep what `rank` has printed so far as the output of `phase`."""

    rank: int
    phase: str


Action = Answer | PhaseOver

# to be looked at before anything can be decided, and what was seen


class Query:
    """Base of the looks; each is answered by the class that follows it."""


@dataclass(frozen=True)
class FindDebuggers(Query):
    """Find the ranks that a debugger is attached to."""


@dataclass(frozen=True)
class Debugged:
    """A debugger is attached to `ranks`."""

    ranks: Collection[int]


@dataclass(frozen=True)
class ReadLedgers(Query):
    """Find out who waits for whom, and who in vain.

    `gone` says what became of ranks that are no longer inside, `meetings` which ones wait in one.
    """

    gone: Mapping[int, str]
    meetings: Mapping[int, InMeeting]


@dataclass(frozen=True)
class LedgersRead:
    """What the ledgers say; `blocked`: ranks with a thread that waits in an operation.

    `cost`: how many seconds the look took.
    """

    waits: Waits
    blocked: frozenset[int]
    cost: float = 0.0


@dataclass(frozen=True)
class FindStopped(Query):
    """Find those of `ranks` that a signal such as SIGSTOP has stopped."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class StoppedFound:
    """A signal has stopped `ranks`."""

    ranks: Collection[int]


@dataclass(frozen=True)
class AwaitEnd(Query):
    """Wait up to `seconds` for the group to be gone; `forced`: have it ended first."""

    seconds: float
    forced: bool = False


@dataclass(frozen=True)
class EndAwaited:
    """How the group ended, by itself or `forced`; None if it has not."""

    ended: GroupEnded | None
    forced: bool = False


QueryResult = Debugged | LedgersRead | StoppedFound | EndAwaited
