"""The verdict on a test whose ranks do anything that ranks can do, in any order, at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from simulated_run import SERIAL, SimulatedRun, ended, meeting, report, through

from pytest_pprank.controller.run.steps import Answer
from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.protocol.messages import (
    LedgerUpdated,
    Pause,
    PhaseReport,
    RankBroken,
    TestDone,
)
from pytest_pprank.report.verdicts import Hung, Late, RankDied, RanksDiverged, Stopped, Stuck

GRACE, TIMEOUT, TICK = 2.0, 40.0, 0.25
BY_SIGNAL, BY_ITSELF, WITH_WORDS = "killed by SIGKILL", "it exited with code 3", "it is broken"
OUTCOMES = st.sampled_from(["passed", "passed", "failed", "skipped"])


class Rank:
    """A rank's own steps, phase after phase, and what it waits for."""

    def __init__(self) -> None:
        self.phase = "setup"
        self.meets = 0
        """The number of the meeting in which it waits."""
        self.at_end = self.done = self.dead = self.heard = self.stopped = False
        self.failed = self.answer_is_coming = False
        self.went_on = -1.0
        self.words = ""
        self.recv: tuple[int, int] | None = None
        """The peer from which it waits for a message, and the number of the operation."""

    @property
    def inside(self) -> bool:
        return not (self.at_end or self.done or self.heard)

    @property
    def works(self) -> bool:
        held_up = self.meets or self.at_end or self.stopped or self.recv or self.answer_is_coming
        return not (self.done or self.dead or held_up)

    def answered(self, message: Any) -> None:
        """Continue after the end of a phase or after a meeting, when the answer arrives."""
        self.answer_is_coming = True
        if self.at_end and message.number > 100:
            ready = not message.error and {*message.payloads} == {b"passed"}
            self.phase = "call" if self.phase == "setup" and ready else "teardown"
            self.at_end = False
        elif message.number == self.meets:
            self.meets = 0


class AnyOrder(RuleBasedStateMachine):
    """The ranks, the controller's state machine, and the clock."""

    @initialize(
        world_size=st.integers(2, 4), phases=st.integers(0, 2), ticks=st.sampled_from([0, 20])
    )
    def begin(self, world_size: int, phases: int, ticks: int) -> None:
        self.run = SimulatedRun(world_size, TIMEOUT, GRACE)
        self.ranks = [Rank() for _ in range(world_size)]
        self.deaths: list[int] = []  # in this order; the controller may learn of them in any order
        self.exits: dict[str, Any] = {}
        self.closed: list[int] = []
        self.numbers = 0
        self.paused: set[int] = set()
        self.counted = 0.0  # seconds that count towards deadlines
        self.slack = 2 * TICK
        self.since: dict[Any, Any] = {}
        self.stuck_since: dict[Any, float] = {}
        for _ in range(phases):
            self.all_end_their_phase(range(4), "passed")
        self.time_passes(ticks)

    # actions of ranks

    def pick(self, data: Any, of: Callable[[Rank], object]) -> Any:
        return data.draw(st.sampled_from([r for r, rank in enumerate(self.ranks) if of(rank)]))

    def some(self, of: Callable[[Rank], object]) -> Any:
        return not self.run.ended and any(of(rank) for rank in self.ranks)

    def say(self, rank: int, message: Any) -> None:
        before = len(self.run.actions)
        self.run.happen(rank, message)
        for action in self.run.actions[before:]:
            if isinstance(action, Answer):
                for each in action.ranks:
                    self.ranks[each].answered(action.message)
        self.note()

    def number(self) -> Any:
        self.numbers += 1
        return self.numbers % 100 + 1

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(data=st.data(), outcome=OUTCOMES, after=st.sampled_from([0, 0, 20]))
    def ends_its_phase(self, data: Any, outcome: str, after: int) -> None:
        self.time_passes(after)
        if self.some(lambda rank: rank.works):
            self.end_phase(self.pick(data, lambda rank: rank.works), outcome)

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(order=st.permutations(range(4)), outcome=OUTCOMES)
    def all_end_their_phase(self, order: list[int], outcome: str) -> None:
        for index in order:
            if index < len(self.ranks) and self.ranks[index].works:
                self.end_phase(index, outcome)
        self.decide()

    @precondition(lambda self: self.some(bool) and not self.deaths)
    @rule(order=st.permutations(range(4)))
    def nothing_holds_them_up_any_more(self, order: list[int]) -> None:
        for rank in self.ranks:
            rank.stopped, rank.recv = False, None
        self.nobody_is_debugged()
        for _ in range(10):
            self.decide()
            if not self.run.ended:
                self.all_end_their_phase(order, "passed")
        assert self.run.state.over
        assert self.run.verdict is None

    def end_phase(self, index: int, outcome: str) -> None:
        rank = self.ranks[index]
        rank.failed = outcome == "failed"
        if rank.phase == "teardown":
            rank.done = True
            self.say(index, TestDone(report=report("teardown", outcome)))
        else:
            rank.at_end = True
            end = through(rank.phase, outcome)
            object.__setattr__(end, "payload", outcome.encode())
            self.say(index, end)

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(data=st.data(), operation=st.sampled_from(["barrier()", "gather()"]))
    def meets(self, data: Any, operation: str) -> None:
        index = self.pick(data, lambda rank: rank.works)
        self.ranks[index].meets = self.number()
        self.say(index, meeting(self.ranks[index].meets, operation))

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(data=st.data(), what=st.integers(0, 3))
    def says_something(self, data: Any, what: int) -> None:
        index = self.pick(data, lambda rank: rank.works)
        stale = through("setup", "failed")
        object.__setattr__(stale, "serial", SERIAL - 1)
        subtest = PhaseReport(report("call", "failed", context={}))
        message = [stale, meeting(0, serial=SERIAL - 1), LedgerUpdated(), subtest][what]
        if message is not subtest or self.ranks[index].phase == "call":
            self.say(index, message)

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(data=st.data(), peer=st.integers(1, 3))
    def waits_for_a_message(self, data: Any, peer: int) -> None:
        index = self.pick(data, lambda rank: rank.works)
        peer = (index + peer) % len(self.ranks)
        if peer != index:
            self.ranks[index].recv = (peer, self.number())
            self.note()

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(often=st.integers(0, 3))
    def each_waits_for_the_next(self, often: int) -> None:
        for index, rank in enumerate(self.ranks):
            if rank.works and often == 3:
                rank.recv = ((index + 1) % len(self.ranks), self.number())
        self.note()

    @precondition(lambda self: self.some(lambda rank: rank.recv))
    @rule(data=st.data())
    def gets_its_message(self, data: Any) -> None:
        rank = self.ranks[self.pick(data, lambda rank: rank.recv)]
        if rank.recv is not None and self.ranks[rank.recv[0]].works:
            rank.recv = None
            self.note()

    # events that happen to ranks

    @precondition(lambda self: self.some(lambda rank: not rank.dead))
    @rule(data=st.data(), how=st.sampled_from([BY_SIGNAL, BY_ITSELF, WITH_WORDS]))
    def dies(self, data: Any, how: Any) -> None:
        self.die(self.pick(data, lambda rank: not rank.dead), how)

    @precondition(lambda self: not self.run.ended)
    @rule(
        deaths=st.permutations(range(4)),
        closings=st.permutations(range(4)),
        how=st.lists(st.sampled_from([BY_SIGNAL, BY_ITSELF, WITH_WORDS]), min_size=4, max_size=4),
        together=st.integers(0, 2),
    )
    def all_die(self, deaths: list[int], closings: list[int], how: Any, together: int) -> None:
        for index in deaths if together == 2 else ():
            if index < len(self.ranks) and not self.ranks[index].dead:
                self.die(index, how[index], heard=False)
        for index in closings if together == 2 else ():
            if index < len(self.ranks) and not self.ranks[index].heard:
                self.close(index)

    def die(self, index: int, how: Any, heard: bool = True) -> None:
        self.ranks[index].dead = True
        self.deaths.append(index)
        self.exits[f"r{index}"] = -9 if how == BY_SIGNAL else 3
        self.run.visible.ends = ended(first=self.deaths[0], **self.exits)
        self.ranks[index].words = WITH_WORDS if how == WITH_WORDS else ""
        if heard and how == WITH_WORDS:
            self.close(index)

    def close(self, index: int) -> None:
        """Close a rank's connection after its last message."""
        rank = self.ranks[index]
        rank.heard = True
        if rank.words:
            self.closed.append(index)
            self.say(index, RankBroken(rank.words))
        self.say(index, None)

    @precondition(lambda self: self.some(lambda rank: rank.dead and not rank.heard))
    @rule(data=st.data())
    def its_connection_closes(self, data: Any) -> None:
        self.close(self.pick(data, lambda rank: rank.dead and not rank.heard))

    @precondition(lambda self: self.some(self.can_be_stopped))
    @rule(data=st.data())
    def is_stopped(self, data: Any) -> None:
        self.ranks[self.pick(data, self.can_be_stopped)].stopped = True
        self.note()

    def can_be_stopped(self, rank: Rank) -> bool:
        # not again before its progress could have been observed
        return rank.works and self.run.now >= rank.went_on + 3 * TICK

    @precondition(lambda self: self.some(lambda rank: rank.stopped))
    @rule(data=st.data())
    def goes_on(self, data: Any) -> None:
        self.go_on(self.pick(data, lambda rank: rank.stopped))

    @precondition(lambda self: self.some(self.can_be_stopped))
    @rule(data=st.data(), ticks=st.integers(0, 7))
    def is_stopped_before_it_ends_its_phase(self, data: Any, ticks: int) -> None:
        index = self.pick(data, self.can_be_stopped)
        self.ranks[index].stopped = True
        self.time_passes(ticks)
        if not self.run.ended:
            self.go_on(index)
            self.end_phase(index, "passed")

    def go_on(self, index: int) -> None:
        self.ranks[index].stopped, self.ranks[index].went_on = False, self.run.now
        self.note()

    @precondition(lambda self: self.some(lambda rank: rank.works))
    @rule(data=st.data(), reason=st.sampled_from(["a look", None]), ticks=st.sampled_from([0, 20]))
    def is_debugged(self, data: Any, reason: Any, ticks: int) -> None:
        index = self.pick(data, lambda rank: rank.works)
        if reason:
            self.say(index, Pause(True, reason))
            self.paused.add(index)
        else:
            self.slack += 1  # it is not observed at once
            self.run.visible.debugged |= {index}
        self.time_passes(ticks)

    @precondition(lambda self: not self.run.ended)
    @rule()
    def nobody_is_debugged(self) -> None:
        self.slack += bool(self.run.visible.debugged)
        for index in self.paused:
            self.say(index, Pause(False))
        self.paused.clear()
        self.run.visible.debugged = frozenset()

    # time

    @precondition(lambda self: not self.run.ended)
    @rule(ticks=st.sampled_from([1, 2, 3, 5, 9, 9, 20, 60]))
    def time_passes(self, ticks: int) -> None:
        self.decide()
        for _ in range(ticks):
            if not self.run.ended:
                before = self.run.now
                self.run.play(until=before + TICK)
                if not (self.paused or self.run.visible.debugged):
                    self.counted += self.run.now - before
                self.note()
                self.judged()

    def decide(self) -> None:
        self.note()
        self.run.decide()
        self.judged()
        for rank in self.ranks:
            rank.answer_is_coming = False

    @precondition(lambda self: self.run.ended)
    @rule(seconds=st.integers(0, 100))
    def the_end_is_final(self, seconds: float) -> None:
        before = self.run.verdict
        self.run.now += seconds
        assert self.run.decide() is before

    # invariants

    def note(self) -> None:
        """Record since when (in counted seconds) conditions hold, and what can be observed."""
        ranks, see = dict(enumerate(self.ranks)), self.run.visible
        see.stopped = frozenset(r for r, rank in ranks.items() if rank.stopped)
        see.waits = self.waits()
        arrived = [rank for rank in self.ranks if rank.at_end or rank.done]
        inside = {r for r, rank in ranks.items() if rank.inside}
        now: set[Any] = {("stopped", rank) for rank in see.stopped & inside}
        now |= {"through"} if arrived else set()
        now |= {"failed"} if any(rank.failed for rank in arrived) else set()
        if see.waits.deadlock or (inside and see.waits.stuck >= inside):
            now |= {("in vain", see.waits.key)}
        # ledgers count from when they show the wait, whoever else could still help then
        key = see.waits.key
        self.stuck_since = {key: self.stuck_since.get(key, self.run.now)} if key else {}
        self.since = {what: self.since.get(what, (self.counted, self.run.now)) for what in now}

    def waits(self) -> Any:
        """Return what the ledgers would show."""
        waiting = {r: rank.recv for r, rank in enumerate(self.ranks) if rank.recv and rank.inside}
        gone = {r for r, rank in enumerate(self.ranks) if not rank.inside}
        stuck = dict(waiting)
        while loose := [r for r, (peer, _) in stuck.items() if peer not in gone | {*stuck}]:
            del stuck[loose[0]]
        circle = [r for r in stuck if self.comes_back(r, stuck)]
        key = frozenset((rank, number) for rank, (_, number) in stuck.items())
        return Waits(deadlock=tuple(circle), stuck=frozenset(stuck), key=key)

    @staticmethod
    def comes_back(start: Any, waiting: Any) -> Any:
        rank = start
        for _ in waiting:
            rank = waiting[rank][0]
            if rank == start:
                return True
            if rank not in waiting:
                return False
        return False

    def judged(self) -> None:
        if self.run.verdict is None:
            self.nothing_is_overdue()
        else:
            self.the_verdict_is_right(self.run.verdict)

    def nothing_is_overdue(self) -> None:
        assert not any(rank.heard for rank in self.ranks)
        if self.run.state.over:
            assert all(rank.done for rank in self.ranks)
            return
        assert self.counted < TIMEOUT + self.slack
        for what in self.since.keys() - {"through"}:
            assert self.age(what) < GRACE + 2 * TICK + self.slack, what

    def age(self, what: Any) -> Any:
        """Return for how many counted seconds a condition has held."""
        return self.counted - self.since[what][0] if what in self.since else 0.0

    def stuck_for(self) -> float:
        """Return for how many seconds of real time the ledgers have shown the same."""
        return self.run.now - max(self.stuck_since.values())

    def real_age(self, kind: Any) -> Any:
        """Return the longest time in real seconds that any condition of that kind has held."""
        whens = [when for what, (_, when) in self.since.items() if what[0] == kind]
        return self.run.now - min(whens)

    def the_verdict_is_right(self, verdict: Any) -> None:
        if isinstance(verdict, RankDied):
            self.the_first_cause_is_named(verdict)
            return
        assert isinstance(verdict, Late)
        assert not self.paused
        assert not any(rank.heard for rank in self.ranks)
        inside = {r: rank.phase for r, rank in enumerate(self.ranks) if rank.inside}
        assert verdict.inside.keys() == inside.keys()
        if isinstance(verdict, Hung):
            assert self.counted + self.slack >= TIMEOUT
            assert "through" not in self.since
        elif isinstance(verdict, RanksDiverged):
            assert verdict.through.keys() == {*range(len(self.ranks))} - {*inside}
            if verdict.limit.startswith("they wait"):
                assert self.stuck_for() >= (0.75 if "failed" in self.since else GRACE)
            else:
                assert self.age("through") + self.slack >= min(GRACE, TIMEOUT - self.counted)
        elif isinstance(verdict, Stopped):
            assert {*verdict.stopped} <= {r for r in inside if self.ranks[r].stopped}
            assert self.real_age("stopped") >= GRACE
        else:
            assert isinstance(verdict, Stuck)
            assert self.waits().deadlock
            assert self.stuck_for() >= GRACE

    def the_first_cause_is_named(self, verdict: Any) -> None:
        assert any(rank.heard for rank in self.ranks)
        assert verdict.rank == (self.closed or self.deaths)[0]
        words = {-9: BY_SIGNAL, 3: BY_ITSELF}[self.exits[f"r{verdict.rank}"]]
        assert verdict.how == (WITH_WORDS if self.closed else words)

    @invariant()
    def the_same_ranks_are_through(self) -> None:
        through = {r for r, rank in enumerate(self.ranks) if rank.at_end or rank.done}
        assert self.run.state.arrived() == through

    def teardown(self) -> None:
        """Check that the run ends once no debugger is attached, whatever has happened."""
        if hasattr(self, "run") and not self.run.ended:
            self.nobody_is_debugged()
            self.time_passes(int(TIMEOUT / TICK) + 20)
            assert self.run.ended


def test_any_order() -> None:
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=500,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
