"""The queries of a test run's state machine, their results, and its actions: plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pytest_pprank.oplog.read.waits import InMeeting, Waits
from pytest_pprank.protocol.messages import Exchanged, GroupEnded, Iterate, Released, Told

# actions, to be performed at once and in order


@dataclass(frozen=True)
class Answer:
    """Answer a meeting of some ranks."""

    ranks: tuple[int, ...]
    message: Exchanged


@dataclass(frozen=True)
class KillRanks:
    """Have `ranks` killed, and go on with the others."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class PhaseOver:
    """Keep what `rank` has printed so far as the output of `phase`."""

    rank: int
    phase: str


@dataclass(frozen=True)
class Lend:
    """Lend the terminal to `rank`, which has stopped.

    `failed`: it has failed in this phase, so show what it has printed (empty: it has not failed).
    """

    rank: int
    announce: bool
    main: bool
    failed: str = ""


@dataclass(frozen=True)
class TakeBack:
    """Take the terminal back: the rank that had it runs on, or is dead."""


@dataclass(frozen=True)
class Tell:
    """Tell `rank`, which has stopped, what follows from a command at a prompt."""

    rank: int
    message: Told | Released | Iterate


@dataclass(frozen=True)
class ShowRanks:
    """Tell `rank` where all ranks are; `stopped`: where those are that are in the debugger."""

    rank: int
    stopped: Mapping[int, str]


Action = Answer | KillRanks | PhaseOver | Lend | TakeBack | Tell | ShowRanks

# queries about what must be known for a decision, and their results


class Query:
    """Base of the queries; the result of each is the class that follows it."""


@dataclass(frozen=True)
class FindDebuggers(Query):
    """Find the ranks that a debugger is attached to."""


@dataclass(frozen=True)
class Debugged:
    """A debugger is attached to `ranks`."""

    ranks: Collection[int]


@dataclass(frozen=True)
class ReadLedgers(Query):
    """Find out which ranks wait for which, and which wait in vain.

    `gone`: what became of the ranks that are no longer inside. `meetings`: the ranks that wait in a
    meeting.
    """

    gone: Mapping[int, str]
    meetings: Mapping[int, InMeeting]


@dataclass(frozen=True)
class LedgersRead:
    """What the ledgers show; `blocked`: ranks with a thread or a device that waits in an operation.

    `cost`: how many seconds reading them took.
    """

    waits: Waits
    blocked: frozenset[int]
    cost: float = 0.0


@dataclass(frozen=True)
class FindStopped(Query):
    """Find which of `ranks` were stopped by a signal such as SIGSTOP."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class StoppedFound:
    """The ranks that were stopped by a signal."""

    ranks: Collection[int]


@dataclass(frozen=True)
class AwaitEnd(Query):
    """Wait up to `seconds` for the end of the group; with `forced`, end it first."""

    seconds: float
    forced: bool = False


@dataclass(frozen=True)
class EndAwaited:
    """How the group ended, by itself or `forced`; None if it has not."""

    ended: GroupEnded | None
    forced: bool = False


QueryResult = Debugged | LedgersRead | StoppedFound | EndAwaited
