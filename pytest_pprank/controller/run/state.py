"""The state of a running test: which rank is in which phase, has finished, or is dead.

Pure: messages go in, and actions to perform at once come out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pytest_pprank.controller.run.deadlines import Deadlines
from pytest_pprank.controller.run.reports import PhaseReports
from pytest_pprank.controller.run.steps import Action, Answer, KillRanks, PhaseOver
from pytest_pprank.controller.run.stops import Stops
from pytest_pprank.oplog.read.meetings import Meetings
from pytest_pprank.protocol.messages import (
    Asked,
    Exchange,
    Exchanged,
    Found,
    GroupEnded,
    Kill,
    LedgerUpdated,
    Message,
    Pause,
    PhaseReport,
    RankBroken,
    Report,
    Resumed,
    RunTest,
    Stopped,
    TestDone,
    WritesReport,
)
from pytest_pprank.report.findings import Findings

_AT_PROMPT = "it has stopped in the debugger"
LAUNCHER = -1
"""The sender of GroupEnded; also the launcher's rank in Hello."""
DIED = "died"
"""What became of a rank whose process has ended."""
_KILLED = "killed, as the test wanted"


class RunState:
    """The state of one test on `world_size` ranks. Decisions are made by `Judge`."""

    def __init__(self, order: RunTest, world_size: int, deadlines: Deadlines) -> None:
        self.ranks = range(world_size)
        self.deadlines = deadlines
        self.reports = PhaseReports(self.ranks)
        self.findings = Findings(order.sanitizers, order.perturb.names if order.perturb else ())
        self.meetings = Meetings(world_size, self._answer)
        self.done: dict[int, TestDone] = {}
        self.dead: dict[int, str] = {}
        """Lost ranks, in order, each with the error it has reported, or an empty string."""
        self.killed: frozenset[int] = frozenset()
        """Ranks that the test itself has had killed; those in `gone` are."""
        self.gone: set[int] = set()
        self.stops = Stops(self.ranks)
        self.group_ended = False
        self._serial = order.serial
        self._updated_ledgers: set[int] = set()
        self._writing: set[int] = set()
        self._paused_before: dict[int, str] = {}
        self._inside_at_quit: dict[int, str] = {}
        self._actions: list[Action] = []
        self._handlers: Mapping[type, Callable[[int, Any, float], None]] = {
            type(None): self._lost,
            RankBroken: self._lost,
            PhaseReport: self._reported,
            Found: self._found,
            Exchange: self._exchange,
            TestDone: self._finished,
            Pause: self._pause,
            Kill: self._kill,
            Stopped: self._stopped,
            Resumed: self._resumed,
            Asked: self._asked,
            LedgerUpdated: self._ledger_updated,
            WritesReport: self._writes,
            GroupEnded: self._group_gone,
        }

    def take(self, rank: int, message: Message | None, now: float) -> Iterable[Action]:
        """Process a message of a rank (None: the rank is gone); return the actions to perform."""
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(rank, message, now)
        return self._pop_actions()

    def take_last(self, rank: int, message: Message | None) -> Iterable[Action]:
        """Like `take`, after a verdict: process only messages that may show the first cause."""
        if isinstance(message, (PhaseReport, Exchange, TestDone)):
            self._keep(rank, message.report)
        elif isinstance(message, Found):
            self.findings.add(rank, message.finding)
        return self._pop_actions()

    def turns(self, now: float) -> Iterable[Action]:
        """Return the actions that lend the terminal to a stopped rank; call it repeatedly."""
        return tuple(self.stops.turns(now))

    def mark_arrivals(self, now: float) -> None:
        """Start the grace period if a rank has finished; call after processing all messages."""
        self.deadlines.mark_arrivals(bool(self.done) or self.meetings.any_at_end_of_phase(), now)

    @property
    def over(self) -> bool:
        """Whether every rank has finished the test."""
        return len(self.done) == len(self.ranks) - len(self.gone)

    def arrived(self) -> set[int]:
        """Return the ranks that have finished their phase, or the test."""
        return set(self.meetings.at_end_of_phase()) | set(self.done)

    def inside(self) -> dict[int, str]:
        """Return the ranks that have neither finished their phase nor died, and where each is."""
        inside = set(self.ranks) - self.arrived() - set(self.dead) - self.gone
        return {rank: self.place(rank) for rank in sorted(inside)}

    def inside_since_quit(self) -> dict[int, str]:
        """Return the ranks still inside the phase in which the user has ended the test."""
        phase, before = self.reports.phase, self._inside_at_quit
        return {r: place for r, place in self.inside().items() if before.get(r) == phase(r)}

    def place(self, rank: int) -> str:
        """Return where a rank is, in words."""
        phase, waiting = self.reports.phase(rank), self.meetings.waiting().get(rank)
        if rank in self._writing:
            return f"{phase} (through, and writes its report)"
        return f"{phase} (waiting {waiting})" if waiting else phase

    def progress(self) -> dict[int, str]:
        """Return what became of the ranks that are no longer inside, in words."""
        through = {rank: self.reports.last(rank) for rank in sorted(self.arrived())}
        lost = {**dict.fromkeys(sorted(self.gone), _KILLED), **dict.fromkeys(self.dead, DIED)}
        return {**through, **lost}

    def failed(self) -> bool:
        """Return whether a rank that has finished its phase has failed."""
        return any(self.reports.failed(rank) for rank in self.arrived())

    def only_set_up(self) -> bool:
        """Return whether the finished ranks have finished setup only, and none has failed."""
        if self.done or self.failed():
            return False
        return all(self.reports.only_set_up(rank) for rank in self.arrived())

    def only_reports_left(self) -> bool:
        """Return whether all ranks that have not finished are writing the report of a failure."""
        return self._writing.issuperset(self.inside())

    def awaiting_ledgers(self, asked: Collection[int]) -> bool:
        """Return whether a rank in `asked` may still answer UpdateLedger."""
        return not set(asked) <= self._updated_ledgers | set(self.dead) | self.gone

    # handlers of messages

    def _lost(self, rank: int, message: RankBroken | None, now: float) -> None:
        self._actions += self.stops.lose(rank)
        if rank in self.killed and message is None:
            self.gone.add(rank)
            self.meetings.lose(rank)
            return
        self.dead.setdefault(rank, message.text if message else "")
        self._leave_prompt(rank, now)
        self.meetings.leave(rank, DIED)

    def _reported(self, rank: int, message: PhaseReport, _now: float) -> None:
        self._keep(rank, message.report)

    def _found(self, rank: int, message: Found, _now: float) -> None:
        self.findings.add(rank, message.finding)

    def _exchange(self, rank: int, exchange: Exchange, _now: float) -> None:
        if exchange.serial == self._serial:
            self._keep(rank, exchange.report)
            self.meetings.arrive(rank, exchange)
        else:
            error = f"{exchange.operation} belongs to a test that has ended"
            self._answer((rank,), Exchanged(exchange.number, error=error))

    def _finished(self, rank: int, message: TestDone, _now: float) -> None:
        self._keep(rank, message.report)
        self.findings.add_results(rank, message.sanitizers)
        self.done[rank] = message
        self.meetings.leave(rank, "finished the test")

    def _pause(self, rank: int, message: Pause, now: float) -> None:
        if message.paused:
            self.deadlines.pause(rank, message.reason, now)
        else:
            self.deadlines.resume(rank, now)

    def _kill(self, _rank: int, message: Kill, _now: float) -> None:
        self.killed |= {*message.ranks}
        self._actions.append(KillRanks(message.ranks))

    def _stopped(self, rank: int, message: Stopped, now: float) -> None:
        before = self.deadlines.paused_by.get(rank, "")
        if before != _AT_PROMPT:
            self._paused_before[rank] = before
        self.deadlines.pause(rank, _AT_PROMPT, now)
        self._actions += self.stops.stop(rank, message, now)

    def _resumed(self, rank: int, message: Resumed, now: float) -> None:
        self._actions += self.stops.resume(rank, message, now)
        self._leave_prompt(rank, now)

    def _asked(self, rank: int, message: Asked, now: float) -> None:
        self._actions += self.stops.asked(rank, message, now)
        if self.stops.quit is not None:
            self._inside_at_quit = {each: self.reports.phase(each) for each in self.inside()}
            for each in self.ranks:
                self._leave_prompt(each, now)

    def _leave_prompt(self, rank: int, now: float) -> None:
        """Let the clock go on, unless the test itself had paused it before."""
        if self.deadlines.paused_by.get(rank) == _AT_PROMPT:
            self.deadlines.resume(rank, now)
            if before := self._paused_before.pop(rank, ""):
                self.deadlines.pause(rank, before, now)

    def _ledger_updated(self, rank: int, _message: LedgerUpdated, _now: float) -> None:
        self._updated_ledgers.add(rank)

    def _writes(self, rank: int, _message: WritesReport, _now: float) -> None:
        self._writing.add(rank)

    def _group_gone(self, _launcher: int, _message: GroupEnded, _now: float) -> None:
        self.group_ended = True

    # actions

    def _keep(self, rank: int, report: Report) -> None:
        self._writing.discard(rank)
        if phase := self.reports.keep(rank, report):
            self._actions.append(PhaseOver(rank, phase))

    def _answer(self, ranks: Collection[int], message: Exchanged) -> None:
        self._actions.append(Answer(tuple(ranks), message))

    def _pop_actions(self) -> Iterable[Action]:
        actions, self._actions = self._actions, []
        return actions
