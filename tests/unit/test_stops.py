"""Which of the ranks that have stopped in a debugger gets the terminal, and when a test ends."""

from __future__ import annotations

import pytest
from simulated_run import Event, SimulatedRun, report, through

from pytest_pprank.controller.run.steps import Action, Lend, ShowRanks, TakeBack, Tell
from pytest_pprank.controller.run.stops import Stops
from pytest_pprank.protocol.messages import (
    Asked,
    Iterate,
    Pause,
    Released,
    Resumed,
    Stopped,
    TestDone,
    Told,
)

HERE = Stopped("test_it.py:3 in test_it", "set_trace")
FAILED = Stopped("test_it.py:4 in test_it", "post_mortem", stays="has failed")


class Clocked:
    """Stops on a simulated clock; `lent`: which rank has the terminal."""

    def __init__(self, size: int = 3) -> None:
        self.stops = Stops(range(size))
        self.now = 100.0
        self.lent: int | None = None

    def stop(self, *ranks: int, message: Stopped = HERE) -> None:
        for rank in ranks:
            self._do(list(self.stops.stop(rank, message, self.now)))

    def resume(self, rank: int, *, stepping: bool = False) -> None:
        self._do(list(self.stops.resume(rank, Resumed(stepping), self.now)))

    def ask(self, rank: int, command: str, argument: str = "") -> list[Action]:
        actions = list(self.stops.asked(rank, Asked(command, argument), self.now))
        self._do(actions)
        return actions

    def after(self, seconds: float) -> int | None:
        self.now += seconds
        self._do(list(self.stops.turns(self.now)))
        return self.lent

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Lend):
                assert self.lent is None, "lent to two ranks"
                self.lent = action.rank
            elif isinstance(action, TakeBack):
                self.lent = None


def test_ranks_that_stop_together_begin_with_the_lowest() -> None:
    run = Clocked()
    run.stop(2, 0)
    assert run.after(0) is None
    assert run.after(1) == 0
    run.resume(0)
    assert run.after(0) == 2


def test_who_has_stopped_earlier_is_earlier() -> None:
    run = Clocked()
    run.stop(2)
    assert run.after(1) == 2
    run.stop(1)
    run.after(1)
    run.stop(0)
    run.resume(2)
    assert run.after(1) == 1


def test_a_rank_that_steps_keeps_the_prompt_for_a_while() -> None:
    run = Clocked()
    run.stop(0, 1)
    assert run.after(1) == 0
    run.resume(0, stepping=True)
    assert run.after(1) is None
    run.stop(0)
    assert run.after(0) == 0
    run.resume(0, stepping=True)
    assert run.after(2) == 1  # the step takes long
    run.stop(0)
    run.resume(1)
    assert run.after(1) == 0


def test_passing_the_prompt_on() -> None:
    run = Clocked()
    run.stop(0, 1, 2)
    assert run.after(1) == 0
    assert run.ask(0, "rank", "2") == [Tell(0, Told())]
    run.stop(0, message=Stopped(HERE.where, HERE.how, then=2))
    assert run.after(0) == 2


@pytest.mark.parametrize(
    ("argument", "words"),
    [("1", "rank 1 has not stopped, rank 2 has"), ("0", "this is rank 0"), ("7", "0 to 2")],
)
def test_the_prompt_does_not_go_everywhere(argument: str, words: str) -> None:
    run = Clocked()
    run.stop(0, 2)
    run.after(1)
    (answer,) = run.ask(0, "rank", argument)
    assert isinstance(answer, Tell)
    assert isinstance(answer.message, Told)
    assert words in answer.message.text


def test_a_dead_rank_gives_the_terminal_back() -> None:
    run = Clocked()
    run.stop(0, 1)
    run.after(1)
    assert list(run.stops.lose(0)) == [TakeBack()]
    run.lent = None
    assert run.after(1) == 1


def test_iterations_need_all_ranks() -> None:
    run = Clocked(2)
    run.stop(0)
    run.after(1)
    no = Told("iterate: all ranks must have stopped, rank 1 has not")
    assert run.ask(0, "iterate") == [Tell(0, no)]
    run.stop(1)
    assert run.ask(0, "iterate", "3") == [Tell(1, Iterate(3)), Tell(0, Told())]
    no = Told("iterate: '0' is not a number of iterations: 1 or above")
    assert run.ask(0, "iterate", "0") == [Tell(0, no)]
    run.resume(1)
    run.stop(1, message=FAILED)
    assert run.ask(0, "iterate") == [Tell(0, Told("iterate: rank 1 has failed"))]


def test_where_all_are() -> None:
    run = Clocked(2)
    run.stop(0)
    run.stop(1, message=FAILED)
    run.after(1)
    (answer,) = run.ask(0, "ranks")
    assert answer == ShowRanks(
        0,
        {
            0: "stopped at test_it.py:3 in test_it (this prompt)",
            1: "failed, stopped at test_it.py:4 in test_it (rank 1 goes there)",
        },
    )


def test_to_quit_releases_all() -> None:
    run = Clocked()
    run.stop(0, 1)
    run.after(1)
    assert run.ask(0, "quit") == [TakeBack(), Tell(1, Released())]
    run.stop(2)
    assert run.after(5) is None


# in the state machine of a test

LONG = 500.0
"""Seconds at the prompt, far beyond all deadlines."""


def test_deadlines_stand_still_at_the_prompt() -> None:
    run = SimulatedRun().play((1, 0, HERE), (LONG, 0, Resumed()), until=LONG + 10)
    assert not run.ended
    run.play(until=LONG + 100)
    assert str(run).startswith("hung: no rank got through within 60 s")


def test_a_pause_of_the_test_outlives_the_prompt() -> None:
    events: list[Event] = [(1, 0, Pause(True, "why")), (2, 0, HERE), (3, 0, Resumed())]
    assert not SimulatedRun().play(*events, until=LONG).ended


def test_quit_ends_the_test_at_once() -> None:
    run = SimulatedRun().play((1, 0, HERE), (LONG, 0, Asked("quit")))
    assert run.now < LONG + 1
    words = "quit in the debugger: you ended the test at the prompt of rank 0, at test_it.py:3 in"
    assert str(run).startswith(words)


@pytest.mark.parametrize("peer", ["passed", "stuck"])
def test_quit_after_a_failure_reports_that_first(peer: str) -> None:
    setup: list[Event] = [(1, rank, through("setup")) for rank in (0, 1)]
    passed: list[Event] = [(3, 1, through("call"))] if peer == "passed" else []
    failed: list[Event] = [
        (2, 0, FAILED),
        (LONG, 0, Asked("quit")),
        (LONG + 1, 0, through("call", "failed")),
    ]
    done: list[Event] = [
        (LONG + 2 + rank, rank, TestDone(report=report("teardown")))
        for rank in (0, 1)
        if peer == "passed"
    ]
    run = SimulatedRun().play(*setup, *passed, *failed, *done)
    assert run.ended
    if peer == "passed":
        assert str(run) == ""
    else:
        assert "rank 1 is still inside call" in str(run)
        assert run.now < LONG + 2
