"""Decides when waiting for the ranks of a test has become pointless, and because of which rank.

Pure: it is given the time, and asks queries for what it must know.
"""

from __future__ import annotations

from collections.abc import Collection

from pytest_pprank.controller.run.deadlines import SLOW
from pytest_pprank.controller.run.deaths import Deaths
from pytest_pprank.controller.run.state import RunState
from pytest_pprank.controller.run.steps import (
    Debugged,
    EndAwaited,
    FindDebuggers,
    FindStopped,
    LedgersRead,
    Query,
    QueryResult,
    ReadLedgers,
    StoppedFound,
)
from pytest_pprank.controller.run.stopped_ranks import StoppedRanks
from pytest_pprank.controller.run.stops import Quit as UserQuit
from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.oplog.read.watch import Waiting, WaitWatch
from pytest_pprank.report.verdicts import (
    Hung,
    Late,
    Quit,
    RanksDiverged,
    Stopped,
    Stuck,
    Trouble,
)

TICK_SECONDS = 0.25
_CERTAIN_SECONDS = 0.75
"""How long a wait that nothing can end must have lasted before it counts."""
_SHORT_SECONDS = 0.5
"""For how long a test is not inspected: most tests are over by then."""
_DEBUGGER = "a debugger is attached"


class Judge:
    """Gives the verdict on one test if a problem occurs: a test that all ranks finish has none."""

    def __init__(self, state: RunState, now: float) -> None:
        self._state = state
        self._deadlines = state.deadlines
        self._deaths = Deaths(state)
        self._stops = StoppedRanks()
        self._watch = WaitWatch()
        self._waiting = Waiting(Waits(), frozenset(), 0.0)
        self._verdict: Trouble | None = None
        self._last_read, self._cost = now, 0.0

    def patience(self, now: float) -> float:
        """Return the seconds to wait for messages before `trouble` is called again."""
        if self._deadlines.paused_by:
            return TICK_SECONDS
        return min(TICK_SECONDS, max(0.0, self._left(now, TICK_SECONDS)))

    def trouble(self, now: float, seen: QueryResult | None = None) -> Trouble | Query | None:
        """Return the verdict, without evidence yet, or None if the ranks may go on.

        If a Query is returned, call again with its result in `seen`. A verdict is final, unless a
        rank dies while evidence is collected.
        """
        step = self._begin(now) if seen is None else self._weigh(now, seen)
        if isinstance(step, Trouble):
            self._verdict = step
        return step

    def _begin(self, now: float) -> Trouble | Query | None:
        if self._verdict is not None:
            # a rank that has lost its connection kills itself when asked for its ledger
            revise = isinstance(self._verdict, Late) and self._state.dead
            return self._deaths.begin() if revise else self._verdict
        self._state.mark_arrivals(now)
        if self._state.dead or self._state.group_ended:
            return self._deaths.begin()
        if (end := self._state.stops.quit) and (left := self._left_behind(end, now)):
            return Quit(rank=end.rank, where=end.where, inside=left)
        if self._state.over:
            return None
        if self._deadlines.since_start(now) > _SHORT_SECONDS:
            return FindDebuggers()
        return self._unless_paused(now)

    def _left_behind(self, end: UserQuit, now: float) -> dict[int, str]:
        """Return the ranks that have not got through since the user has quit, and where they are.

        No rank, as long as one that was asked about its failure has not reported it.
        """
        left = self._state.inside_since_quit()
        return {} if end.reporting & {*left} and now < end.patience else left

    def _weigh(self, now: float, seen: QueryResult) -> Trouble | Query | None:
        if isinstance(seen, EndAwaited):
            return self._deaths.verdict(seen)
        if isinstance(seen, Debugged):
            self._pause(seen.ranks, now)
            return self._unless_paused(now)
        if isinstance(seen, LedgersRead):
            return self._read(seen, now)
        return self._pointless(seen, now)

    def _pause(self, debugged: Collection[int], now: float) -> None:
        for rank in self._state.ranks:
            if rank in debugged:
                self._deadlines.pause(rank, _DEBUGGER, now)
            elif self._deadlines.paused_by.get(rank) == _DEBUGGER:
                self._deadlines.resume(rank, now)

    def _unless_paused(self, now: float) -> Trouble | Query | None:
        if self._deadlines.paused_by:
            # nothing is observed while paused: a wait seen before may have ended and begun again
            self._stops, self._watch = StoppedRanks(), WaitWatch()
            return None
        if self._left(now, 0) <= 0:
            return self._late(now)
        if self._deadlines.since_start(now) < _SHORT_SECONDS or not self._time_to_read(now):
            return None
        return ReadLedgers(self._state.progress(), self._state.meetings.blocked())

    def _left(self, now: float, enough: float) -> float:
        """Return the seconds left, or, if there are more than `enough`, a lower bound."""
        least = self._deadlines.left(now, failed=True)
        if least > enough:
            return least
        return self._deadlines.left(now, failed=self._state.failed(), slow=bool(self._slow()))

    def _slow(self) -> str:
        """What the ranks are at that may take longer, in words; "" where they are not."""
        if self._state.only_reports_left():
            return "for a report"
        return "in setup" if self._state.only_set_up() else ""

    def _time_to_read(self, now: float) -> bool:
        # reading many full ledgers is slow: spend at most a tenth of the time on it
        return now > self._last_read + max(TICK_SECONDS, 10 * self._cost)

    def _read(self, seen: LedgersRead, now: float) -> Trouble | Query:
        self._last_read, self._cost = now, seen.cost
        self._waiting = self._watch.update(seen.waits, seen.blocked, now)
        inside, seconds = self._state.inside(), self._waiting.seconds
        how = self._waiting.standstill(inside)
        if how and seconds >= self._deadlines.grace:
            return Stuck(inside=inside, how=how, seconds=seconds)
        return FindStopped(tuple(inside))

    def _pointless(self, seen: StoppedFound, now: float) -> Trouble | None:
        """Return a verdict before the deadline if the ledgers prove the wait endless."""
        inside, grace = self._state.inside(), self._deadlines.grace
        stopped = self._stops.update(seen.ranks, now)
        if long := {rank: seconds for rank, seconds in stopped.items() if seconds >= grace}:
            ranks = tuple(sorted(long))
            return Stopped(inside=inside, stopped=ranks, seconds=max(long.values()))
        certain = _CERTAIN_SECONDS if self._state.failed() else grace
        if self._waiting.wait_in_vain(inside) and self._waiting.seconds >= certain:
            return self._diverged("they wait for what can no longer come", now)
        return None

    def _late(self, now: float) -> Trouble:
        if not self._state.arrived():
            return Hung(inside=self._state.inside(), timeout=self._deadlines.timeout)
        more = f", {SLOW}-fold {slow}" if (slow := self._slow()) else ""
        return self._diverged(f"--pprank-grace: {self._deadlines.grace:g} s{more}", now)

    def _diverged(self, limit: str, now: float) -> RanksDiverged:
        return RanksDiverged(
            inside=self._state.inside(), through=self._state.progress(),
            seconds=self._deadlines.since_first_arrival(now), limit=limit,
        )  # fmt: skip
