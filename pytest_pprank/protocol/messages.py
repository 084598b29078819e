"""The messages between controller, launcher and ranks.

Every connection starts with a `Hello`; then, for a rank:

    rank        -> Ready            collected, waiting for work (or RankBroken)
    controller  -> RunTest          start barrier: sent to all ranks at once
    rank        -> Exchange         a meeting of all ranks (barrier, gather, end of a phase)
    controller  -> Exchanged        ... once every rank is there, or one can no longer come
    rank        -> TestDone         end barrier
    controller  -> Shutdown         leave the pytest session, tear everything down
    rank        -> TornDown         ... done, and about to exit

A meeting is a collective call of all ranks that goes through the controller. A rank reads the
controller's answer in the thread that waits for it. Messages that a rank must receive whatever its
threads do come on a second connection, its watch: UpdateLedger, which asks for what only the rank
can find out before its group is killed; Shutdown, too; and the end of the controller, seen as the
end of the connection.

A finding of a sanitizer is sent alone and at once (Found). The report of a phase is part of the
message that ends the phase; reports of subtests are sent alone (PhaseReport). A rank may stop the
deadlines of its test (Pause) while somebody debugs it.

A test may have some of its own ranks killed (Kill): they are expected to be gone then, and meetings
are those of the other ranks.

A rank that has stopped in pdb asks for the terminal (Stopped) and gets it on its watch (Turn); it
gives it back with Resumed, or with another Stopped. What is typed there about other ranks is sent
to the controller (Asked), which answers on the watch (Told).

For the launcher process: StartGroup, KillRanks and KillGroup from the controller, Preloaded and
GroupEnded to it. Objects of the test's author cross only as opaque bytes, so the controller never
imports what a rank has imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pytest_pprank.protocol.findings import Finding
from pytest_pprank.protocol.schedule import Schedule
from pytest_pprank.protocol.world import World

PROTOCOL = 9
"""Incremented whenever a message changes; both ends refuse another number."""

ItemKey = tuple[str, ...]
"""The key of a test on any rank: file, then the names of class, function and parameters."""


PLAIN_FIELDS = ("when", "outcome", "duration", "start", "stop")
"""The fields of the report of a phase that passed and has nothing else to report."""

Report: TypeAlias = "str | tuple[Any, ...] | None"
"""The report of a phase: the values of PLAIN_FIELDS, or JSON text of pytest's own serialisation."""


@dataclass(frozen=True)
class Hello:
    """First message on every connection. `rank` is -1 for the launcher; `watch`: see the module."""

    rank: int
    pid: int
    group: str = ""
    protocol: int = PROTOCOL
    watch: bool = False


@dataclass(frozen=True)
class Ready:
    """A rank has collected its tests; `missing` maps each test that it lacks to the reason.

    `endpoint`: where it waits for a debugger to attach, as ``host:port``; empty if it does not.
    """

    missing: dict[ItemKey, str] = field(default_factory=dict)
    endpoint: str = ""


@dataclass(frozen=True)
class RankBroken:
    """A rank cannot run tests at all; `text` says why, with a traceback if that helps."""

    text: str


@dataclass(frozen=True)
class RunTest:
    """Run one test. `next_key` tells pytest which fixtures may stay alive.

    `serial`: number of the test, counting up. `nodeid`: the test's node id in the controller's
    pytest, which the rank takes over. `sanitizers`: names of the ones that watch the test.
    `perturb`: the perturbations it runs under.
    """

    key: ItemKey
    next_key: ItemKey | None
    serial: int
    nodeid: str
    sanitizers: tuple[str, ...] = ()
    perturb: Schedule | None = None


@dataclass(frozen=True)
class PhaseReport:
    """A report of one test on one rank that is not part of another message."""

    report: Report


@dataclass(frozen=True)
class Found:
    """A finding of a sanitizer on a rank, in the running test."""

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

    `payload` is pickled by the rank. `report` is the report of the phase that ends with this
    meeting.
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
    """A rank has finished a test. `spoiled` says why this group must not run another one.

    `unsettled`: the test, or an operation of it, failed, so messages of it may still be in flight
    in a process group, and the next test would receive them. `unfinished`: some operation was never
    waited for, so the other ranks' ledgers must show whether it has a counterpart. `report`: that
    of the last phase. `sanitizers`: JSON of `host.lifecycles.TestLifecycles.results`. `perturbed`:
    in words, what the perturbations did. `world`: the state in which the next test would start.
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
    """Stop the deadlines of the running test, or resume them; `reason` is shown to the user."""

    paused: bool
    reason: str = ""


@dataclass(frozen=True)
class Kill:
    """The running test wants `ranks` to be killed; sent by one of the others."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Stopped:
    """A rank has stopped in pdb at `where` and waits for the terminal.

    `how`: ``set_trace``, ``runcall`` (--trace) or ``post_mortem`` (--pdb). `main`: whether the main
    thread has stopped, which alone can be interrupted by Ctrl-C. `stays`: why this rank cannot take
    part in an iteration of the engine, in words; empty if it can. `then`: a rank that the user
    wants to talk to next, else -1.
    """

    where: str
    how: str
    main: bool = True
    stays: str = ""
    then: int = -1


@dataclass(frozen=True)
class Resumed:
    """A rank leaves the prompt and runs on; with `stepping` it is likely to be back soon."""

    stepping: bool = False


@dataclass(frozen=True)
class Asked:
    """A command at the prompt of a rank: ``rank``, ``ranks``, ``iterate``, ``quit``, ``exit``."""

    command: str
    argument: str = ""


@dataclass(frozen=True)
class Turn:
    """The terminal is this rank's. `announce`: its user has talked to another rank before.

    `term`: the kind of terminal, as in the environment variable TERM.
    """

    announce: bool
    term: str = ""


@dataclass(frozen=True)
class Told:
    """The answer to Asked: what to show, or an empty text if the command may be carried out."""

    text: str = ""


@dataclass(frozen=True)
class Iterate:
    """Let the engine do `times` iterations, together with all other ranks: all have stopped."""

    times: int


@dataclass(frozen=True)
class Released:
    """The user has ended the test from the prompt of another rank: nobody will talk to this one."""


@dataclass(frozen=True)
class UpdateLedger:
    """Note which operations that nobody waits for are done, and dump NCCL's flight recorder."""


@dataclass(frozen=True)
class LedgerUpdated:
    """The answer to UpdateLedger; a rank that is blocked while it holds the GIL sends none."""


@dataclass(frozen=True)
class WritesReport:
    """A phase has failed on a rank, which writes its report: none of the test's code runs now."""


@dataclass(frozen=True)
class Shutdown:
    """Finish the pytest session on this rank."""


@dataclass(frozen=True)
class TornDown:
    """A rank has finished its pytest session; nothing more is expected from it.

    `output`: what plugins on the rank have left for those of the controller (protocol.worker_data).
    """

    output: bytes = b""


@dataclass(frozen=True)
class StartGroup:
    """Tell the launcher to start a worker group."""

    group: str
    nproc: int
    workdir: str
    bootstrap: bytes


@dataclass(frozen=True)
class KillRanks:
    """Tell the launcher to kill ranks of the group it runs by SIGKILL, and to go on with it."""

    group: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class KillGroup:
    """Tell the launcher to end every process of the group it runs: SIGTERM, then SIGKILL."""

    group: str


@dataclass(frozen=True)
class Preloaded:
    """The state of the fork server after its imports; `threads` by name, the main one first.

    `cuda`: where its imports have started CUDA, in words; empty if nowhere.
    """

    seconds: float
    modules: tuple[str, ...]
    failures: dict[str, str]
    threads: tuple[str, ...]
    cuda: str
    start_method: str
    reason: str = ""


@dataclass(frozen=True)
class GroupEnded:
    """All processes of a group are gone.

    `exits` maps a rank to its exit code (-9: SIGKILL). `first` is the rank that elastic saw fail,
    and because of which it ended the others (-1: none).
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
    | Kill
    | Stopped
    | Resumed
    | Asked
    | Turn
    | Told
    | Iterate
    | Released
    | UpdateLedger
    | LedgerUpdated
    | WritesReport
    | Shutdown
    | TornDown
    | StartGroup
    | KillRanks
    | KillGroup
    | Preloaded
    | GroupEnded
)


def as_message(thing: Any) -> Message:
    """Return `thing` if it is a message of this module; raises TypeError otherwise."""
    if type(thing).__module__ != __name__:
        raise TypeError(f"not a message of this protocol: {type(thing).__name__}")
    message: Message = thing
    return message
