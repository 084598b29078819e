"""One test on all ranks of a group, from the start barrier to the end barrier or the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_pprank.controller.debugger.places import describe_running
from pytest_pprank.controller.debugger.prompt import Prompt
from pytest_pprank.controller.observer import Observer
from pytest_pprank.controller.post_mortem import look_at
from pytest_pprank.controller.run.deadlines import Deadlines
from pytest_pprank.controller.run.judge import TICK_SECONDS, Judge
from pytest_pprank.controller.run.state import LAUNCHER, RunState
from pytest_pprank.controller.run.steps import (
    Action,
    Answer,
    KillRanks,
    Lend,
    PhaseOver,
    Query,
    ShowRanks,
)
from pytest_pprank.controller.worlds import left_changed, why_spoiled
from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.protocol.channel import pack
from pytest_pprank.protocol.group_note import note_test
from pytest_pprank.protocol.messages import RunTest, UpdateLedger
from pytest_pprank.report.evidence import split_stderr
from pytest_pprank.report.outcome import Printed, TestOutcome
from pytest_pprank.report.verdicts import Detail, Late, RankDied, Trouble, places_of

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup

_LEDGER_SECONDS = 1.0
_SHOWN_AFTER_SECONDS = 1.0
"""How long a test may take before it is shown where its ranks are."""


class TestRun:
    """Runs the state machine of one test: passes messages to it, and answers its queries.

    The decisions are made in `run`. While a test takes long, `tick` is called repeatedly with where
    its ranks are, in words.
    """

    __test__ = False

    def __init__(
        self,
        group: WorkerGroup,
        order: RunTest,
        timeout: float,
        grace: float,
        prompt: Prompt,
        tick: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`prompt`: what lends the terminal to ranks that stop in a debugger."""
        self._group = group
        self._prompt = prompt
        self._tick = tick
        self._began = time.monotonic()
        self._state = RunState(order, group.world_size, Deadlines(timeout, grace, self._began))
        self._judge = Judge(self._state, self._began)
        self._observer = Observer(group)
        self.waits = Waits()
        """Who waited for whom when that was last looked for, because the test was ended."""
        self._printed: dict[int, Printed] = {rank: {} for rank in group.ranks}
        group.pipes.read()
        for rank in group.ranks:
            group.pipes.take_read(rank)  # discard output printed between tests
        note_test(group.workdir, order.nodeid)
        group.send_packed(group.ranks, pack(order))

    def wait(self) -> TestOutcome:
        """Return when every rank is done, or when a verdict on a problem ends the test."""
        trouble = None
        try:
            while not self._state.over and trouble is None:
                self._show_places()
                self._listen(self._judge.patience(time.monotonic()))
                self._act(self._state.turns(time.monotonic()))
                trouble = self._trouble()
        finally:
            self._prompt.take_back()
            note_test(self._group.workdir, "")
        if trouble is not None:
            self._drain()
        return self._outcome(trouble)

    def interrupted(self) -> TestOutcome:
        """Return what is known of a test that the user has interrupted, after `where`."""
        return self._outcome(None)

    def _show_places(self) -> None:
        if time.monotonic() > self._began + _SHOWN_AFTER_SECONDS and not self._prompt.lent:
            self._tick(places_of(self._state.inside()))

    def where(self) -> tuple[Detail, ...]:
        """Return where every rank is, for a user who has interrupted the run."""
        inside = self._state.inside()
        places = tuple((f"rank {rank}", f"inside {place}") for rank, place in inside.items())
        details = self._inspect(inside)
        waits = "\n".join(self._waits())
        return places + ((("who waits for whom", waits),) if waits else ()) + details

    def _outcome(self, trouble: Trouble | None) -> TestOutcome:
        done, quit_, killed = self._state.done, self._state.stops.quit, self._state.killed
        unsettled = trouble is not None or any(it.unsettled for it in done.values())
        reports = self._state.reports.by_rank
        return TestOutcome(
            reports={rank: own for rank, own in reports.items() if rank not in killed},
            printed=self._printed,
            troubles=[trouble] if trouble else [],
            spoiled=""
            if killed
            else why_spoiled(done, None if trouble else self._observer.left_over),
            unsettled=unsettled or quit_ is not None or bool(killed),
            killed=killed,
            seconds=time.monotonic() - self._began,
            findings=self._state.findings,
            perturbed={rank: it.perturbed for rank, it in done.items()},
            left=left_changed(done),
            waits=self.waits,
            places={**self._state.inside(), **self._state.progress()},
            leave=quit_ is not None and quit_.session,
        )

    # messages

    def _listen(self, seconds: float) -> None:
        for peer, message in self._group.messages(seconds):
            self._act(self._state.take(peer.rank, message, time.monotonic()))
        if self._group.ended is not None:
            self._act(self._state.take(LAUNCHER, self._group.ended, time.monotonic()))

    def _drain(self) -> None:
        """Process the messages that ranks have sent meanwhile: they may contain the first cause."""
        while received := self._group.messages(0):
            for peer, message in received:
                self._act(self._state.take_last(peer.rank, message))
            if all(message is None for _, message in received):
                break
        self._group.pipes.read()
        for rank in self._group.ranks:
            self._take_printed(rank, self._state.reports.phase(rank))

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Answer):
                self._group.answer(action.ranks, action.message)
            elif isinstance(action, KillRanks):
                self._group.kill_ranks(action.ranks)
            elif isinstance(action, PhaseOver):
                self._take_printed(action.rank, action.phase)
            elif isinstance(action, ShowRanks):
                self._prompt.tell(self._group, action.rank, self._places(action.stopped))
            else:
                if isinstance(action, Lend) and action.failed:
                    self._show_printed(action.rank)
                self._prompt.act(self._group, action)

    def _take_printed(self, rank: int, phase: str) -> None:
        for stream, text in self._group.pipes.take_read(rank).items():
            streams = self._printed[rank].setdefault(phase, {})
            streams[stream] = streams.get(stream, "") + text

    # the debugger

    def _show_printed(self, rank: int) -> None:
        """Show what a rank has printed before its failure, as pytest does."""
        phase = self._state.reports.phase(rank)
        self._group.pipes.read()
        self._take_printed(rank, phase)
        self._prompt.show_printed(rank, self._printed[rank].get(phase, {}))

    def _places(self, stopped: Mapping[int, str]) -> Mapping[int, str]:
        """Return where each rank is, in words; of a rank that runs, at which line."""
        running = {r: place for r, place in self._state.inside().items() if r not in stopped}
        pids = {rank: self._group.ranks[rank].pid for rank in running}
        inside = describe_running(self._group.workdir, running, pids, self._waits())
        return {**self._state.progress(), **inside, **stopped}

    # verdicts and their evidence

    def _trouble(self) -> Trouble | None:
        trouble = self._judged()
        if isinstance(trouble, Late):
            details, waits = self._inspect(trouble.inside), self._waits()
            trouble = self._judged()
            if isinstance(trouble, Late):
                return replace(trouble, details=details, waits=waits)
        return self._add_evidence(trouble) if isinstance(trouble, RankDied) else trouble

    def _judged(self) -> Trouble | None:
        step = self._judge.trouble(time.monotonic())
        while isinstance(step, Query):
            seen = self._observer.answer(step)
            step = self._judge.trouble(time.monotonic(), seen)
        return step

    def _add_evidence(self, death: RankDied) -> RankDied:
        self._drain()
        phase = self._state.reports.phase(death.rank)
        printed = self._printed[death.rank].get(phase, {})
        evidence, rest = split_stderr(printed.get("stderr", ""))
        evidence = evidence.with_memory(self._group.oom_kills.explain(death.how))
        printed["stderr"] = rest
        dump, waits = evidence.dump, "\n".join(self._waits())
        details = [(f"faulthandler on rank {death.rank}", dump)] if dump else []
        details += [("who waited for whom", waits)] if waits else []
        return replace(death, evidence=evidence, details=tuple(details))

    def _inspect(self, inside: Iterable[int]) -> tuple[Detail, ...]:
        """Ask the ranks `inside` for their ledgers, and return what can be seen from outside."""
        inside = tuple(inside)
        for rank in inside:
            self._group.send_on_watch(rank, UpdateLedger())
        deadline = time.monotonic() + _LEDGER_SECONDS
        while self._state.awaiting_ledgers(inside):
            if time.monotonic() > deadline:
                break  # blocked while holding the GIL, or stopped
            self._listen(TICK_SECONDS / 10)
        pids = {rank: self._group.ranks[rank].pid for rank in inside}
        return look_at(self._group.workdir, pids, sorted(self._group.ranks))

    def _waits(self) -> tuple[str, ...]:
        read = self._observer.ledgers(self._state.progress(), self._state.meetings.blocked())
        self.waits = read.waits
        return read.waits.lines
