"""A test run without ranks: a script of what ranks send, what can be observed of them, and when.

It does what controller.test_run.TestRun does, with a clock of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pytest_pprank.controller.run.deadlines import Deadlines
from pytest_pprank.controller.run.judge import Judge
from pytest_pprank.controller.run.state import LAUNCHER, RunState
from pytest_pprank.controller.run.steps import (
    Action,
    AwaitEnd,
    Debugged,
    EndAwaited,
    FindStopped,
    LedgersRead,
    Query,
    QueryResult,
    ReadLedgers,
    StoppedFound,
)
from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.protocol.messages import Exchange, GroupEnded, Message, Report, RunTest
from pytest_pprank.report.verdicts import Trouble

SERIAL = 7


@dataclass
class Visible:
    """What can be observed of the ranks."""

    debugged: frozenset[int] = frozenset()
    stopped: frozenset[int] = frozenset()
    waits: Waits = field(default_factory=Waits)
    blocked: frozenset[int] = frozenset()
    cost: float = 0.0
    """Seconds that reading the ledgers takes."""
    ends: GroupEnded | None = None
    """How the group ends by itself, if the controller waits for that."""
    ends_at_once: bool = False
    """Whether that end is known without waiting."""
    ends_forced: GroupEnded | None = None
    """How the group ends if it is forced to."""

    def see(self, look: Query) -> QueryResult:
        """Return the observation for a request."""
        if isinstance(look, ReadLedgers):
            return LedgersRead(self.waits, self.blocked, self.cost)
        if isinstance(look, FindStopped):
            return StoppedFound(self.stopped & {*look.ranks})
        if isinstance(look, AwaitEnd):
            ends = self.ends_forced if look.forced else self.ends
            return EndAwaited(ends if look.seconds or self.ends_at_once else None, look.forced)
        return Debugged(self.debugged)


Event = tuple[float, int, "Message | None"] | tuple[float, dict[str, Any]]
"""(time, rank, message; None: its connection closes), or (time, what can be observed)."""


class SimulatedRun:
    """Plays events from second 0 on. `verdict` and `now`: at the end."""

    def __init__(self, world_size: int = 2, timeout: float = 60, grace: float = 5) -> None:
        self.now = 0.0
        self.visible = Visible()
        order = RunTest(("test_it.py", "test_it"), None, SERIAL, "test_it.py::test_it[pp2]")
        self.state = RunState(order, world_size, Deadlines(timeout, grace, self.now))
        self.judge = Judge(self.state, self.now)
        self.verdict: Trouble | None = None
        self.looks: list[tuple[float, Query]] = []
        self.actions: list[Action] = []
        self._spun = False

    @property
    def ended(self) -> bool:
        """Whether nothing is waited for any more."""
        return self.verdict is not None or self.state.over

    def play(self, *events: Event, until: float = 1000) -> SimulatedRun:
        """Play the events, and let time pass until the run ends or until that second."""
        coming = sorted(events, key=lambda event: event[0])
        while not self.ended and self.now < until:
            patience = self.judge.patience(self.now)
            assert patience or not self._spun, "it does not wait, nor does it give up"
            self._spun = not patience
            self.now = min([self.now + patience, until, *_times(coming)])
            while coming and coming[0][0] <= self.now:
                self.happen(*coming.pop(0)[1:])
            self.decide()
        return self

    def happen(self, *what: Any) -> None:
        """Let a rank send a message, or change what can be observed."""
        if len(what) == 1:
            vars(self.visible).update(what[0])
        else:
            rank, message = what
            self.actions += self.state.take(rank, message, self.now)

    def decide(self) -> Trouble | None:
        """Ask the judge, and make the observations that it requests."""
        step = self.judge.trouble(self.now)
        while isinstance(step, Query):
            self.looks.append((self.now, step))
            step = self.judge.trouble(self.now, self.visible.see(step))
        self.verdict = step
        return step

    def looked(self, kind: type[Query]) -> list[float]:
        """Return the times at which such an observation was requested."""
        return [when for when, look in self.looks if type(look) is kind]

    def __str__(self) -> str:
        return "" if self.verdict is None else f"{self.verdict.kind}: {self.verdict.text}"


def report(when: str, outcome: str = "passed", **more: Any) -> Report:
    """Return the report of a phase."""
    return json.dumps({"when": when, "outcome": outcome, **more})


def through(phase: str, outcome: str = "passed", **more: Any) -> Exchange:
    """Return a rank's message that it has finished setup or call, and waits for the others."""
    number = ("setup", "call").index(phase) + 101
    operation = f"end of {phase}"
    return Exchange(number, operation, outcome, b"", SERIAL, report(phase, outcome, **more))


def meeting(number: int = 1, operation: str = "barrier()", serial: int = SERIAL) -> Exchange:
    """Return a rank's message that it has come to a meeting of the test."""
    return Exchange(number, operation, "test_it.py:3", None, serial)


def ended(error: str = "", first: int = -1, **exits: int) -> GroupEnded:
    """Return the message that all processes have exited; `exits` by rank: ``r1=-9``."""
    return GroupEnded("g1", {int(rank[1:]): code for rank, code in exits.items()}, error, first)


def launcher(when: float, message: GroupEnded) -> Event:
    """Return the event by which the launcher reports how the group has ended."""
    return when, LAUNCHER, message


def _times(events: list[Event]) -> list[float]:
    return [event[0] for event in events[:1]]
