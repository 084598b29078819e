"""One test on all ranks of a group, from the start barrier to the end barrier or the deadline."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

from pytest_pprank.controller.deadlines import IN_SETUP, Deadlines, is_traced
from pytest_pprank.controller.post_mortem import look_at
from pytest_pprank.controller.process_state import StopWatch
from pytest_pprank.controller.worlds import left_changed, why_spoiled
from pytest_pprank.oplog.read.meetings import Meetings
from pytest_pprank.oplog.read.watch import WaitWatch
from pytest_pprank.protocol.channel import pack
from pytest_pprank.protocol.messages import (
    PLAIN_FIELDS,
    Exchange,
    Exchanged,
    Found,
    GroupEnded,
    KillGroup,
    Message,
    Pause,
    PhaseReport,
    RankBroken,
    Report,
    RunTest,
    StockTaken,
    TakeStock,
    TestDone,
)
from pytest_pprank.report.evidence import read_last_words
from pytest_pprank.report.findings import Findings
from pytest_pprank.report.outcome import Printed, TestOutcome
from pytest_pprank.report.verdicts import (
    Detail,
    GroupDied,
    Hung,
    RankDied,
    RanksDiverged,
    Stopped,
    Stuck,
    Trouble,
    describe_exit,
)

if TYPE_CHECKING:
    from pytest_pprank.controller.group import RankPeer, WorkerGroup

_EXIT_CODE_SECONDS = 1.0
_REAP_SECONDS = 5.0
_TICK_SECONDS = 0.25
_STOCK_SECONDS = 1.0
_CERTAIN_SECONDS = 0.75
"""How long a wait that nobody can end must have lasted before it is believed."""
_SHORT_SECONDS = 0.5
"""A test that is younger is not looked at: most are over by then."""
_PHASES = ("setup", "call", "teardown")
_OUR_SIGNALS = (-signal.SIGTERM, -signal.SIGKILL)
_DEBUGGER = "a debugger is attached"


class TestRun:
    """Collects what the ranks report, and decides when waiting for them has become pointless."""

    __test__ = False

    def __init__(self, group: WorkerGroup, order: RunTest, deadlines: Deadlines) -> None:
        self._group = group
        self._serial = order.serial
        self._findings = Findings(order.sanitizers, order.perturb.names if order.perturb else ())
        self._deadlines = deadlines
        self._meetings = Meetings(group.world_size, group.answer)
        self._watch = WaitWatch(group.workdir, group.world_size)
        self._stops = StopWatch()
        self._reports: dict[int, list[dict[str, Any]]] = {rank: [] for rank in group.ranks}
        self._printed: dict[int, Printed] = {rank: {} for rank in group.ranks}
        self._done: dict[int, TestDone] = {}
        self._dead: dict[int, str] = {}
        self._stock_taken: set[int] = set()
        self._began = self._looked = time.monotonic()
        group.pipes.read()
        for rank in group.ranks:
            group.pipes.take_read(rank)  # said between tests: nobody's
        group.send_packed(group.ranks, pack(order))

    def wait(self) -> TestOutcome:
        """Return when every rank is done, or when the group has been given up."""
        trouble = None
        while len(self._done) < self._group.world_size and trouble is None:
            self._listen(self._patience())
            self._deadlines.mark_arrivals(bool(self._done) or self._meetings.any_at_end_of_phase())
            trouble = self._trouble()
        if trouble is not None:
            self._drain()
        return TestOutcome(
            reports=self._reports,
            printed=self._printed,
            troubles=[trouble] if trouble else [],
            spoiled=why_spoiled(self._done, None if trouble else self._watch.left_over),
            unsettled=trouble is not None or any(done.unsettled for done in self._done.values()),
            seconds=time.monotonic() - self._began,
            findings=self._findings,
            perturbed={rank: done.perturbed for rank, done in self._done.items()},
            left=left_changed(self._done),
        )

    def where(self) -> tuple[Detail, ...]:
        """Say where every rank is, for somebody who has interrupted the run."""
        inside = {rank: self._place(rank) for rank in self._inside()}
        places = tuple((f"rank {rank}", f"inside {place}") for rank, place in inside.items())
        details = self._look(inside)
        waits = "\n".join(self._waits())
        return places + ((("who waits for whom", waits),) if waits else ()) + details

    def _listen(self, seconds: float) -> None:
        for peer, message in self._group.messages(seconds):
            self._take(peer, message)

    def _drain(self) -> None:
        """Take what ranks have said meanwhile: the first cause may be in it."""
        while heard := self._group.messages(0):
            for peer, message in heard:
                if isinstance(message, (PhaseReport, Exchange, TestDone)):
                    self._keep(peer.rank, message.report)
                elif isinstance(message, Found):
                    self._findings.add(peer.rank, message.finding)
            if all(message is None for _, message in heard):
                break
        self._group.pipes.read()
        for rank in self._reports:
            self._take_printed(rank, self._phase(rank))

    def _take(self, peer: RankPeer, message: Message | None) -> None:
        rank = peer.rank
        if message is None or isinstance(message, RankBroken):
            self._dead.setdefault(rank, message.text if message else "")
            self._meetings.leave(rank, "died")
        elif isinstance(message, PhaseReport):
            self._keep(rank, message.report)
        elif isinstance(message, Found):
            self._findings.add(rank, message.finding)
        elif isinstance(message, Exchange):
            self._arrive(rank, message)
        elif isinstance(message, TestDone):
            self._keep(rank, message.report)
            self._findings.brought(rank, message.sanitizers)
            self._done[rank] = message
            self._meetings.leave(rank, "finished the test")
        elif isinstance(message, Pause) and message.paused:
            self._deadlines.pause(rank, message.reason)
        elif isinstance(message, Pause):
            self._deadlines.resume(rank)
        elif isinstance(message, StockTaken):
            self._stock_taken.add(rank)

    def _arrive(self, rank: int, exchange: Exchange) -> None:
        if exchange.serial == self._serial:
            self._keep(rank, exchange.report)
            self._meetings.arrive(rank, exchange)
        else:
            error = f"{exchange.operation} belongs to a test that has ended"
            self._group.answer((rank,), Exchanged(exchange.number, error=error))

    def _keep(self, rank: int, serialised: Report) -> None:
        if serialised is None:
            return
        if isinstance(serialised, str):
            report = json.loads(serialised)
        else:
            report = dict(zip(PLAIN_FIELDS, serialised, strict=True))
        if "context" not in report:  # of a subtest: the phase goes on
            self._take_printed(rank, report["when"])
        self._reports[rank].append(report)

    def _take_printed(self, rank: int, phase: str) -> None:
        for stream, text in self._group.pipes.take_read(rank).items():
            streams = self._printed[rank].setdefault(phase, {})
            streams[stream] = streams.get(stream, "") + text

    def _arrived(self) -> set[int]:
        return set(self._meetings.at_end_of_phase()) | set(self._done)

    def _inside(self) -> list[int]:
        return sorted(set(self._group.ranks) - self._arrived() - set(self._dead))

    def _failed(self) -> bool:
        """Whether a rank that is through has failed."""
        return any(self._phase_outcome(rank) == "failed" for rank in self._arrived())

    def _only_set_up(self) -> bool:
        """Whether those that are through are through with no more than setup, and went well."""
        if self._done or self._failed():
            return False
        return all(self._reports[rank][-1:] and self._reports[rank][-1]["when"] == "setup"
                   for rank in self._arrived())  # fmt: skip

    def _phase_outcome(self, rank: int) -> str:
        reports = self._reports[rank]
        if not reports:
            return ""
        return "failed" if "wasxfail" in reports[-1] else str(reports[-1]["outcome"])

    def _patience(self) -> float:
        if self._deadlines.paused_by:
            return _TICK_SECONDS
        return min(_TICK_SECONDS, max(0.0, self._left(_TICK_SECONDS)))

    def _left(self, enough: float) -> float:
        """Seconds left; where that is more than `enough`, it may be even more."""
        least = self._deadlines.left(failed=True)
        if least > enough:
            return least
        return self._deadlines.left(failed=self._failed(), setup=self._only_set_up())

    def _trouble(self) -> Trouble | None:
        if self._dead or self._group.ended is not None:
            return self._died()
        if len(self._done) == self._group.world_size or self._debugged():
            return None
        late = self._left(0) <= 0
        trouble = self._late() if late else self._pointless()
        # a rank that could not even hear us ends itself when it is asked what it does
        return self._died() if trouble is not None and self._dead else trouble

    def _debugged(self) -> bool:
        if self._deadlines.since_start > _SHORT_SECONDS:
            for rank, peer in self._group.ranks.items():
                if is_traced(peer.pid):
                    self._deadlines.pause(rank, _DEBUGGER)
                elif self._deadlines.paused_by.get(rank) == _DEBUGGER:
                    self._deadlines.resume(rank)
        return bool(self._deadlines.paused_by)

    def _pointless(self) -> Trouble | None:
        """Give up before the deadline where nothing can end the waiting; the ledgers prove it."""
        if self._deadlines.since_start < _SHORT_SECONDS or not self._time_to_look():
            return None
        waiting = self._watch.look(self._progress(), self._meetings.blocked())
        self._looked = time.monotonic()
        inside = self._inside()
        how = waiting.standstill(inside)
        if how and waiting.seconds >= self._deadlines.grace:
            return self._stuck(how, waiting.seconds)
        if stopped := self._stopped(inside):
            return stopped
        certain = _CERTAIN_SECONDS if self._failed() else self._deadlines.grace
        if waiting.wait_in_vain(inside) and waiting.seconds >= certain:
            return self._diverged("they wait for what can no longer come")
        return None

    def _stopped(self, inside: list[int]) -> Stopped | None:
        """Give up on ranks that somebody has stopped, and not let go on within the grace."""
        seen = self._stops.look({rank: self._group.ranks[rank].pid for rank in inside})
        long = {rank: s for rank, s in seen.items() if s >= self._deadlines.grace}
        if not long:
            return None
        places = {rank: self._place(rank) for rank in self._inside()}
        details = self._look(places)
        return Stopped(
            inside=places, waits=self._waits(), details=details,
            stopped=tuple(sorted(long)), seconds=max(long.values()),
        )  # fmt: skip

    def _time_to_look(self) -> bool:
        # many ranks with full ledgers take their time to read: never more than a tenth of ours
        return time.monotonic() > self._looked + max(_TICK_SECONDS, 10 * self._watch.cost)

    def _stuck(self, how: str, seconds: float) -> Stuck:
        inside = {rank: self._place(rank) for rank in self._inside()}
        details = self._look(inside)
        return Stuck(inside=inside, waits=self._waits(), details=details, how=how, seconds=seconds)

    def _died(self) -> Trouble:
        told = [rank for rank, words in self._dead.items() if words]
        alone = told or list(self._dead) or self._inside() or [0]
        ended = self._group.wait_ended(0 if told else _EXIT_CODE_SECONDS)
        by_itself = ended is not None
        if ended is None and not told:
            self._group.tell_launcher(KillGroup(self._group.name))  # peers elastic cannot end soon
            ended = self._group.wait_ended(_REAP_SECONDS)
        if ended is not None and ended.error:
            return GroupDied(error=ended.error)
        culprit = alone[0]
        if ended is not None and not told:
            culprit = _first_dead(culprit, ended, by_itself=by_itself)
        place = self._place(culprit)
        code = None if ended is None else ended.exits.get(culprit)
        how = self._dead.get(culprit) or describe_exit(code)
        self._drain()
        return self._death(culprit, place, how)

    def _death(self, rank: int, place: str, how: str) -> RankDied:
        printed = self._printed[rank].get(self._phase(rank), {})
        evidence, rest = read_last_words(printed.get("stderr", ""))
        evidence = evidence.with_memory(self._group.memory.testimony(how))
        printed["stderr"] = rest
        details = [(f"faulthandler on rank {rank}", evidence.dump)] if evidence.dump else []
        waits = self._waits()
        details += [("who waited for whom", "\n".join(waits))] if waits else []
        return RankDied(rank=rank, place=place, how=how, evidence=evidence, details=tuple(details))

    def _late(self) -> Trouble:
        inside = {rank: self._place(rank) for rank in self._inside()}
        if self._arrived():
            more = f", {IN_SETUP}-fold in setup" if self._only_set_up() else ""
            return self._diverged(f"--pprank-grace: {self._deadlines.grace:g} s{more}")
        details = self._look(inside)
        timeout = self._deadlines.timeout
        return Hung(inside=inside, waits=self._waits(), details=details, timeout=timeout)

    def _diverged(self, limit: str) -> RanksDiverged:
        inside = {rank: self._place(rank) for rank in self._inside()}
        seconds = self._deadlines.since_first_arrival
        through = self._progress()
        details = self._look(inside)
        return RanksDiverged(
            inside=inside, waits=self._waits(), details=details, through=through,
            seconds=seconds, limit=limit,
        )  # fmt: skip

    def _look(self, inside: dict[int, str]) -> tuple[Detail, ...]:
        """Ask the ranks that are still inside, and look at them from outside."""
        for rank in inside:
            self._group.ask(rank, TakeStock())
        deadline = time.monotonic() + _STOCK_SECONDS
        while not set(inside) <= self._stock_taken | set(self._dead):
            if time.monotonic() > deadline:
                break  # blocked with Python's lock held, or stopped
            self._listen(_TICK_SECONDS / 10)
        pids = {rank: self._group.ranks[rank].pid for rank in inside}
        return look_at(self._group.workdir, pids, sorted(self._group.ranks))

    def _waits(self) -> tuple[str, ...]:
        return self._watch.look(self._progress(), self._meetings.blocked()).waits.lines

    def _progress(self) -> dict[int, str]:
        """What became of the ranks that are no longer inside."""
        through = {rank: self._last_report(rank) for rank in sorted(self._arrived())}
        return {**through, **dict.fromkeys(self._dead, "died")}

    def _last_report(self, rank: int) -> str:
        report = self._reports[rank][-1]
        return f"{report['outcome']} in {report['when']}"

    def _place(self, rank: int) -> str:
        waiting = self._meetings.waiting().get(rank)
        return f"{self._phase(rank)} (waiting {waiting})" if waiting else self._phase(rank)

    def _phase(self, rank: int) -> str:
        """The phase a rank is in, which has no report yet."""
        ended = {report["when"] for report in self._reports[rank] if "context" not in report}
        broken = any(report["outcome"] != "passed" for report in self._reports[rank][:1])
        return "teardown" if broken else _PHASES[min(len(ended), 2)]


def _first_dead(heard: int, ended: GroupEnded, *, by_itself: bool) -> int:
    """Whose death came first, where `heard` was the first connection to close.

    A child of a dead rank may keep its connection open, and elastic soon ends the peers: so what
    elastic saw counts, unless it had to be told to end the group. Then a death that nobody caused
    counts before one by a signal that the launcher sends.
    """
    if by_itself and ended.first >= 0:
        return ended.first
    if ended.exits.get(heard) not in _OUR_SIGNALS:
        return heard
    others = [rank for rank, code in ended.exits.items() if code not in _OUR_SIGNALS]
    return others[0] if len(others) == 1 else heard
