"""One test on all ranks of a group, from the start barrier to the end barrier or the deadline."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pytest_pprank.controller.meetings import Meetings
from pytest_pprank.controller.outcome import DIVERGED, TestOutcome, Trouble, describe_exit
from pytest_pprank.controller.stacks import ask_for_stacks
from pytest_pprank.wire.messages import (
    Exchange,
    Exchanged,
    Message,
    PhaseReport,
    RankBroken,
    TestDone,
)

if TYPE_CHECKING:
    from pytest_pprank.controller.group import RankPeer, WorkerGroup

_REAP_SECONDS = 5.0
_TICK_SECONDS = 1.0
_PHASES = ("setup", "call", "teardown")


class TestRun:
    """Collects what the ranks report, and decides when waiting for them has become pointless."""

    __test__ = False

    def __init__(self, group: WorkerGroup, serial: int, timeout: float, grace: float) -> None:
        self._group = group
        self._serial = serial
        self._timeout = timeout
        self._grace = grace
        self._meetings = Meetings(group.world_size, group.answer)
        self._reports: dict[int, list[dict[str, Any]]] = {rank: [] for rank in group.ranks}
        self._done: dict[int, TestDone] = {}
        self._dead: dict[int, str] = {}
        self._start = self._phase_start = time.monotonic()
        self._first_arrival: float | None = None

    def wait(self) -> TestOutcome:
        """Return when every rank is done, or when the group has been given up."""
        trouble = None
        while len(self._done) < self._group.world_size and trouble is None:
            patience = min(_TICK_SECONDS, max(0.0, self._deadline() - _now()))
            for peer, message in self._group.messages(patience):
                self._take(peer, message)
            self._clock_arrivals()
            trouble = self._trouble()
        self._drain()
        spoiled = [
            f"rank {rank}: {done.spoiled}" for rank, done in self._done.items() if done.spoiled
        ]
        return TestOutcome(
            reports=self._reports,
            troubles=[trouble] if trouble else [],
            spoiled="; ".join(spoiled),
            unsettled=trouble is not None or any(done.unsettled for done in self._done.values()),
            seconds=_now() - self._start,
        )

    def _drain(self) -> None:
        """Take what ranks have said meanwhile: the first cause may be in it."""
        while heard := self._group.messages(0):
            for peer, message in heard:
                if isinstance(message, PhaseReport):
                    self._take(peer, message)

    def _take(self, peer: RankPeer, message: Message | None) -> None:
        if message is None or isinstance(message, RankBroken):
            self._dead.setdefault(peer.rank, message.text if message else "")
            self._meetings.leave(peer.rank, "died")
        elif isinstance(message, PhaseReport):
            self._reports[peer.rank].append(json.loads(message.data))
        elif isinstance(message, Exchange):
            self._arrive(peer.rank, message)
        elif isinstance(message, TestDone):
            self._done[peer.rank] = message
            self._meetings.leave(peer.rank, "finished the test")

    def _arrive(self, rank: int, exchange: Exchange) -> None:
        if exchange.serial == self._serial:
            self._meetings.arrive(rank, exchange)
        else:
            error = f"{exchange.operation} belongs to a test that has ended"
            self._group.answer(rank, Exchanged(exchange.number, error=error))

    def _arrived(self) -> set[int]:
        return set(self._meetings.at_end_of_phase()) | set(self._done)

    def _inside(self) -> list[int]:
        return sorted(set(self._group.ranks) - self._arrived() - set(self._dead))

    def _clock_arrivals(self) -> None:
        if not self._arrived():
            if self._first_arrival is not None:
                self._phase_start = _now()  # all have met: the next phase has begun
            self._first_arrival = None
        elif self._first_arrival is None:
            self._first_arrival = _now()

    def _deadline(self) -> float:
        deadline = self._start + self._timeout
        if self._first_arrival is not None:
            deadline = min(deadline, self._first_arrival + self._patience())
        return deadline

    def _patience(self) -> float:
        """Seconds that the others get after the first one is through.

        A failed rank will not come back: the plain grace. After one that went well, its peers may
        take as long again as it took: machines are shared, and stages are not equal.
        """
        assert self._first_arrival is not None
        failed = any(self._phase_outcome(rank) == "failed" for rank in self._arrived())
        return self._grace if failed else max(self._grace, self._first_arrival - self._phase_start)

    def _phase_outcome(self, rank: int) -> str:
        reports = self._reports[rank]
        if not reports:
            return ""
        return "failed" if "wasxfail" in reports[-1] else str(reports[-1]["outcome"])

    def _trouble(self) -> Trouble | None:
        if self._dead or self._group.ended is not None:
            return self._died()
        if len(self._done) == self._group.world_size or _now() < self._deadline():
            return None
        return self._late()

    def _died(self) -> Trouble:
        told = any(self._dead.values())
        ended = self._group.wait_ended(0 if told else _REAP_SECONDS)
        if ended is not None and ended.error:
            return Trouble("worker group died", ended.error)
        exits = ended.exits if ended is not None else {}
        first = next(iter(self._dead), min(self._inside(), default=0))
        # elastic ends the peers of a dead rank itself, and names the one it saw die
        culprit = next(iter(exits)) if exits and first not in exits else first
        how = self._dead.get(culprit) or describe_exit(exits.get(culprit))
        text = f"rank {culprit} died in {self._place(culprit)}: {how}"
        tail = self._group.stderr_tail(culprit)
        return Trouble(
            "rank died", text, ((f"Last lines of stderr of rank {culprit}", tail),) if tail else ()
        )

    def _late(self) -> Trouble:
        inside = self._inside()
        pids = {rank: self._group.ranks[rank].pid for rank in inside}
        details = ask_for_stacks(self._group.workdir, pids)
        places = "; ".join(f"rank {r} is still inside {self._place(r)}" for r in inside)
        arrived = sorted(self._arrived())
        if not arrived:
            text = f"no rank got through within {self._timeout:g} s: {places}"
            return Trouble("hung", text, details)
        assert self._first_arrival is not None
        ago = _now() - self._first_arrival
        through = "; ".join(f"rank {r} {self._progress(r)}" for r in arrived)
        text = f"{places}, {ago:.1f} s after {through} (--pprank-grace: {self._grace:g} s)"
        return Trouble(DIVERGED, text, details)

    def _place(self, rank: int) -> str:
        ended = {report["when"] for report in self._reports[rank] if "context" not in report}
        broken = any(report["outcome"] != "passed" for report in self._reports[rank][:1])
        phase = "teardown" if broken else _PHASES[min(len(ended), 2)]
        waiting = self._meetings.waiting().get(rank)
        return f"{phase} (waiting {waiting})" if waiting else phase

    def _progress(self, rank: int) -> str:
        report = self._reports[rank][-1]
        return f"{report['outcome']} in {report['when']}"


def _now() -> float:
    return time.monotonic()
