"""What controller, launcher and ranks say to each other.

Every connection starts with a `Hello`; then, for a rank:

    rank        -> Ready            collected, waiting for work (or RankBroken)
    controller  -> RunTest          start barrier: sent to all ranks at once
    rank        -> Exchange         a meeting of all ranks (barrier, gather, end of a phase)
    controller  -> Exchanged        ... once every rank is there, or can no longer come
    rank        -> TestDone         end barrier
    controller  -> Shutdown         leave the pytest session, tear everything down
    rank        -> TornDown         ... done, and on its way out

A rank reads an answer in the thread that waits for it. What it has to hear whatever its threads
do comes on a second connection, its watch: that somebody wants to know what only it can tell
(UpdateLedger) before its group is given up, Shutdown too, and the end of the controller.

What a sanitizer finds comes alone, at once (Found). Reports of phases ride on the message that
ends the phase; those of subtests come alone (PhaseReport). A rank may stop the deadlines of its
test (Pause) while somebody debugs it.

and for the launcher process: StartGroup / KillGroup from the controller, Preloaded /
GroupEnded to it. Objects of the test's author cross only as opaque bytes, so the
controller never imports what a rank has imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pytest_pprank.protocol.findings import Finding
from pytest_pprank.protocol.schedule import Schedule
from pytest_pprank.protocol.world import World

PROTOCOL = 7
"""Raised whenever a message changes; both ends refuse another number."""

ItemKey = tuple[str, ...]
"""File, then the names of class, function and parameters: a test on any rank."""


PLAIN_FIELDS = ("when", "outcome", "duration", "start", "stop")
"""All there is in the report of a phase that passed and has nothing else to tell."""

Report: TypeAlias = "str | tuple[Any, ...] | None"
"""A report of a phase: the values of PLAIN_FIELDS, or JSON text of pytest's own serialisation."""


@dataclass(frozen=True)
class Hello:
    """First message of every peer. `rank` is -1 for the launcher process; `watch`: see above."""

    rank: int
    pid: int
    group: str = ""
    protocol: int = PROTOCOL
    watch: bool = False


@dataclass(frozen=True)
class Ready:
    """A rank has collected; `missing` says, per test that it lacks, why."""

    missing: dict[ItemKey, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RankBroken:
    """A rank cannot run tests at all; `text` says why, with a traceback where it helps."""

    text: str


@dataclass(frozen=True)
class RunTest:
    """Run one test; `next_key` tells pytest which fixtures may stay alive. `serial` counts up.

    `nodeid`: what the controller's pytest calls it, and the rank's is to call it.
    `sanitizers`: names of those that are to watch it. `perturb`: what it runs under.
    """

    key: ItemKey
    next_key: ItemKey | None
    serial: int
    nodeid: str
    sanitizers: tuple[str, ...] = ()
    perturb: Schedule | None = None


@dataclass(frozen=True)
class PhaseReport:
    """A report of one test on one rank that comes alone."""

    report: Report


@dataclass(frozen=True)
class Found:
    """A sanitizer has found something on a rank, in the running test."""

    finding: Finding


@dataclass(frozen=True)
class WarningSeen:
    """A warning that pytest recorded on a rank."""

    category: str
    text: str
    filename: str
    lineno: int
    when: str
    nodeid: str


@dataclass(frozen=True)
class Exchange:
    """A rank arrives at its `number`-th meeting, in test `serial` (0: before the first one).

    `payload` is pickled by the rank; `report` is that of the phase which ends with the meeting.
    """

    number: int
    operation: str
    where: str
    payload: bytes | None = None
    serial: int = 0
    report: Report = None


@dataclass(frozen=True)
class Exchanged:
    """The meeting took place (`payloads` by rank), or `error` says why it never will."""

    number: int
    payloads: tuple[bytes | None, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class TestDone:
    """A rank has finished a test. `spoiled` says why this group must not run another.

    `unsettled`: the test, or an operation of it, did not go through, and its messages may still be
    on their way in a process group; the next test would receive them. `unfinished`: nobody has
    waited for the end of some operation, so the other ranks' ledgers must tell whether it has one.
    `report` is that of the last phase. `sanitizers`: JSON of what they bring (see
    host.lifecycles); `perturbed`: in words, what the perturbations did. `world`: what the next
    test would find.
    """

    __test__ = False  # not a test class, for the users' collectors
    spoiled: str = ""
    unsettled: bool = False
    unfinished: bool = False
    report: Report = None
    sanitizers: str = ""
    perturbed: str = ""
    world: World = field(default_factory=World)


@dataclass(frozen=True)
class Pause:
    """Stop the deadlines of the running test, or let them go on; `reason` is shown to the user."""

    paused: bool
    reason: str = ""


@dataclass(frozen=True)
class UpdateLedger:
    """Look what became of operations nobody waits for, and dump what only the rank can dump."""


@dataclass(frozen=True)
class LedgerUpdated:
    """The answer to UpdateLedger; a rank that is blocked with Python's lock held gives none."""


@dataclass(frozen=True)
class Shutdown:
    """Finish the pytest session on this rank."""


@dataclass(frozen=True)
class TornDown:
    """A rank has finished its pytest session; what it still does is nobody's concern.

    `output`: what plugins there have left for those of the controller (protocol.worker_data).
    """

    output: bytes = b""


@dataclass(frozen=True)
class StartGroup:
    """Ask the launcher for a worker group."""

    group: str
    nproc: int
    workdir: str
    bootstrap: bytes


@dataclass(frozen=True)
class KillGroup:
    """Ask the launcher to end every process of the group it runs: SIGTERM, then SIGKILL."""

    group: str


@dataclass(frozen=True)
class Preloaded:
    """What the fork server looks like after its imports; `threads` by name, the main one first."""

    seconds: float
    modules: tuple[str, ...]
    failures: dict[str, str]
    threads: tuple[str, ...]
    cuda_initialized: bool
    start_method: str
    reason: str = ""


@dataclass(frozen=True)
class GroupEnded:
    """All processes of a group are gone.

    `exits` maps a rank to its exit code (-9: SIGKILL); `first` is the rank that elastic saw fail,
    and ended the others for (-1: none).
    """

    group: str
    exits: dict[int, int]
    error: str = ""
    first: int = -1


Message: TypeAlias = (
    Hello
    | Ready
    | RankBroken
    | RunTest
    | PhaseReport
    | Found
    | WarningSeen
    | Exchange
    | Exchanged
    | TestDone
    | Pause
    | UpdateLedger
    | LedgerUpdated
    | Shutdown
    | TornDown
    | StartGroup
    | KillGroup
    | Preloaded
    | GroupEnded
)


def as_message(thing: Any) -> Message:
    """Return `thing` if it is one of our messages; raises TypeError otherwise."""
    if type(thing).__module__ != __name__:
        raise TypeError(f"not a message of this protocol: {type(thing).__name__}")
    message: Message = thing
    return message
