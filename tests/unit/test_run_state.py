"""A table of what ranks send and what is observed of them, and the verdict on their test.

For orders that are not in it, see tests/behaviour/test_run_state_orders.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from simulated_run import (
    SERIAL,
    SimulatedRun,
    ended,
    launcher,
    meeting,
    report,
    through,
)

from pytest_pprank.controller.run.steps import (
    Answer,
    AwaitEnd,
    FindDebuggers,
    FindStopped,
    PhaseOver,
    Query,
    ReadLedgers,
)
from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.protocol.messages import (
    Exchange,
    Kill,
    LedgerUpdated,
    Pause,
    PhaseReport,
    RankBroken,
    TestDone,
    WritesReport,
)

GRACE, TIMEOUT, TICK = 5, 60, 0.25
GONE = None
DONE = TestDone(report=report("teardown"))


def both(when: float, message: Any) -> list[tuple[float, int, Any]]:
    """Let both ranks send the same message at the same time."""
    return [(when, 0, message), (when, 1, message)]


def seen(when: float, **what: Any) -> tuple[float, dict[str, Any]]:
    """Let something be observable from some time on."""
    return (when, what)


IN_CALL = both(1, through("setup"))
CIRCLE = Waits(deadlock=(0, 1), key=frozenset({(0, 3), (1, 3)}))
CIRCLE_LATER = Waits(deadlock=(0, 1), key=frozenset({(0, 4), (1, 4)}))
MISMATCH = Waits(mismatch=True, key=frozenset({(0, 3), (1, 3)}))
IN_VAIN = Waits(stuck=frozenset({1}), key=frozenset({(1, 3)}))

VERDICTS = {
    # how long ranks may take
    "nobody gets through": (
        [],
        TIMEOUT,
        "hung: no rank got through within 60 s: ranks 0,1 are still inside setup",
    ),
    "after a failure the others have the grace": (
        [*IN_CALL, (3, 0, through("call", "failed"))],
        8,
        "ranks diverged: rank 1 is still inside call, 5.0 s after rank 0 failed in call "
        "(--pprank-grace: 5 s)",
    ),
    "a report that is being written gets longer": (
        [*IN_CALL, (3, 0, through("call", "failed")), (4, 1, WritesReport())],
        33,
        "ranks diverged: rank 1 is still inside call (through, and writes its report), 30.0 s "
        "after rank 0 failed in call (--pprank-grace: 5 s, 6-fold for a report)",
    ),
    "a report that has been written": (
        [*IN_CALL, (1.5, 1, WritesReport()), (2, 1, through("call", "failed"))],
        7,
        "ranks diverged: rank 0 is still inside call, 5.0 s after rank 1 failed in call",
    ),
    "a failure that was expected is one": (
        [*IN_CALL, (21, 0, through("call", "skipped", wasxfail="reason"))],
        26,
        "ranks diverged: rank 1 is still inside call, 5.0 s after rank 0 skipped in call",
    ),
    "after a pass, as long again as it took": (
        [*IN_CALL, (2, 1, through("call")), (3, 0, through("call")), (23, 0, DONE)],
        43,
        "ranks diverged: rank 1 is still inside teardown, 20.0 s after rank 0 passed in teardown",
    ),
    "after a quick pass, the grace": (
        [*IN_CALL, (2, 0, through("call"))],
        7,
        "rank 1 is still inside call, 5.0 s after rank 0 passed in call (--pprank-grace: 5 s)",
    ),
    "in setup the grace is six-fold": (
        [(1, 0, through("setup"))],
        31,
        "rank 1 is still inside setup, 30.0 s after rank 0 passed in setup "
        "(--pprank-grace: 5 s, 6-fold in setup)",
    ),
    "but not after a setup that failed": (
        [(1, 0, through("setup", "failed"))],
        6,
        "5.0 s after rank 0 failed in setup (--pprank-grace: 5 s)",
    ),
    "nor where a rank is done, however far it came": (
        [(1, 0, TestDone(report=report("setup")))],
        6,
        "rank 1 is still inside setup, 5.0 s after rank 0 passed in setup (--pprank-grace: 5 s)",
    ),
    "nor where a rank has told nothing": (
        [(1, 0, TestDone())],
        6,
        "rank 1 is still inside setup, 5.0 s after rank 0 finished the test (--pprank-grace: 5 s)",
    ),
    "never more than the timeout": (
        [*IN_CALL, (50, 0, through("call"))],
        TIMEOUT,
        "ranks diverged: rank 1 is still inside call, 10.0 s after rank 0 passed in call",
    ),
    "each phase has a grace of its own": (
        [(1, 0, through("setup")), (5, 1, through("setup")), (7, 0, through("call", "failed"))],
        12,
        "rank 1 is still inside call, 5.0 s after rank 0 failed in call",
    ),
    "a setup that failed is followed by teardown": (
        [*both(1, through("setup", "failed")), (2, 0, DONE)],
        7,
        "rank 1 is still inside teardown, 5.0 s after rank 0 passed in teardown",
    ),
    "a subtest does not end its phase": (
        [*IN_CALL, (2, 1, PhaseReport(report("call", "failed", context={})))],
        TIMEOUT,
        "hung: no rank got through within 60 s: ranks 0,1 are still inside call",
    ),
    # where ranks are
    "it waits in a meeting": (
        [*IN_CALL, (2, 0, meeting())],
        TIMEOUT,
        "rank 0 is still inside call (waiting in barrier() at test_it.py:3); "
        "rank 1 is still inside call",
    ),
    "whoever is at a meeting has not got through": (
        [*IN_CALL, (2, 0, meeting()), (3, 1, through("call", "failed"))],
        8,
        "rank 0 is still inside call, 5.0 s after rank 1 failed in call",
    ),
    "a meeting of an earlier test is none": (
        [*IN_CALL, (2, 0, meeting(serial=SERIAL - 1))],
        TIMEOUT,
        "ranks 0,1 are still inside call",
    ),
    "nor is the end of a phase of an earlier test": (
        [(2, 0, Exchange(9, "end of setup", "failed", serial=SERIAL - 1))],
        TIMEOUT,
        "hung: no rank got through within 60 s: ranks 0,1 are still inside setup",
    ),
    # deaths
    "killed before any report": (
        [seen(0, ends=ended(first=1, r0=-15, r1=-9)), (3, 1, GONE)],
        3,
        "rank died: rank 1 died in setup: killed by SIGKILL",
    ),
    "killed after a report": (
        [*IN_CALL, seen(0, ends=ended(first=1, r0=-15, r1=7)), (3, 1, GONE)],
        3,
        "rank died: rank 1 died in call: it exited with code 7",
    ),
    "gone after it was done": (
        [*IN_CALL, *both(2, through("call")), (3, 0, DONE), (4, 0, GONE)],
        4,
        "rank died: rank 0 died in teardown: it closed its connection",
    ),
    "gone when all are done is a death, too": (
        [*IN_CALL, *both(2, through("call")), *both(3, DONE), (3, 0, GONE)],
        3,
        "rank died: rank 0 died in teardown",
    ),
    "elastic has seen another die first": (
        [seen(0, ends=ended(first=0, r0=1, r1=-9)), (3, 1, GONE)],
        3,
        "rank died: rank 0 died in setup: it exited with code 1",
    ),
    "elastic has seen none": (
        [seen(0, ends=ended(r0=0, r1=3)), (3, 1, GONE), (3, 0, GONE)],
        3,
        "rank died: rank 1 died in setup: it exited with code 3",
    ),
    "told to end, by itself counts before a signal of the launcher": (
        [seen(0, ends_forced=ended(first=0, r0=-15, r1=3)), (3, 0, GONE)],
        3,
        "rank died: rank 1 died in setup: it exited with code 3",
    ),
    "told to end, whom elastic names it has ended itself": (
        [seen(0, ends_forced=ended(first=0, r0=-15, r1=-9)), (3, 1, GONE)],
        3,
        "rank died: rank 1 died in setup: killed by SIGKILL",
    ),
    "killed by the test: the others' verdict counts": (
        [
            *IN_CALL,
            (2, 0, Kill((1,))),
            (3, 1, GONE),
            (4, 0, through("call", "failed")),
            (5, 0, DONE),
        ],
        5,
        "",
    ),
    "killed by the test, and does not die": (
        [*IN_CALL, (2, 0, Kill((1,))), (3, 0, through("call"))],
        8,
        "ranks diverged: rank 1 is still inside call, 5.0 s after rank 0 passed in call",
    ),
    "the other one dies by itself": (
        [*IN_CALL, (2, 0, Kill((1,))), (3, 1, GONE), (4, 0, GONE)],
        4,
        "rank died: rank 0 died in call: it closed its connection",
    ),
    "nobody knows how": (
        [(3, 1, GONE)],
        3,
        "rank died: rank 1 died in setup: it closed its connection",
    ),
    "broken, in its own words": (
        [*IN_CALL, seen(0, ends=ended(first=0, r0=1, r1=1)), (3, 1, RankBroken("no memory"))],
        3,
        "rank died: rank 1 died in call: no memory",
    ),
    "broken, and the group has ended already": (
        [
            seen(0, ends=ended(first=0, r0=1, r1=1), ends_at_once=True),
            (3, 1, RankBroken("no memory")),
        ],
        3,
        "rank died: rank 1 died in setup: no memory",
    ),
    "who has said what is wrong counts before who is gone": (
        [(3, 0, GONE), (3, 1, RankBroken("no memory"))],
        3,
        "rank died: rank 1 died in setup: no memory",
    ),
    "broken twice: what it said first": (
        [(3, 1, RankBroken("no memory")), (3, 1, RankBroken("no disk")), (3, 1, GONE)],
        3,
        "rank died: rank 1 died in setup: no memory",
    ),
    "who waited in a meeting waits no longer once dead": (
        [*IN_CALL, (2, 1, meeting()), (3, 1, GONE)],
        3,
        "rank died: rank 1 died in call: it closed its connection",
    ),
    "the launcher is gone": (
        [
            *IN_CALL,
            seen(0, ends=ended("the launcher process died")),
            launcher(3, ended("the launcher process died")),
        ],
        3,
        "worker group died: the launcher process died",
    ),
    "the group has ended": (
        [*IN_CALL, seen(0, ends=ended(first=1, r1=-11)), launcher(3, ended(first=1, r1=-11))],
        3,
        "rank died: rank 1 died in call: killed by SIGSEGV",
    ),
    "the group has ended, by nobody's fault": (
        [
            *IN_CALL,
            seen(0, ends=ended(r0=0, r1=0)),
            (2, 0, through("call")),
            launcher(3, ended(r0=0, r1=0)),
        ],
        3,
        "rank died: rank 1 died in call: it exited with code 0",
    ),
    # deadlocks
    "a circle": (
        [*IN_CALL, seen(2, waits=CIRCLE)],
        7,
        "hung: deadlock: ranks 0,1 are still inside call, and for 5.0 s nothing has moved",
    ),
    "a circle that has moved": (
        [*IN_CALL, seen(2, waits=CIRCLE), seen(6, waits=CIRCLE_LATER)],
        11,
        "hung: deadlock: ",
    ),
    "a mismatch of ranks that are all blocked": (
        [*IN_CALL, seen(2, waits=MISMATCH, blocked=frozenset({0, 1}))],
        7,
        "hung: mismatch: ",
    ),
    "a mismatch of ranks of which one is not": (
        [*IN_CALL, seen(2, waits=MISMATCH, blocked=frozenset({1}))],
        TIMEOUT,
        "hung: no rank got through",
    ),
    "in vain, for one that has failed": (
        [*IN_CALL, seen(3, waits=IN_VAIN), (3, 0, through("call", "failed"))],
        4,
        "ranks diverged: rank 1 is still inside call, 1.0 s after rank 0 failed in call "
        "(they wait for what can no longer come)",
    ),
    "in vain, for one that has passed": (
        [*IN_CALL, seen(21, waits=IN_VAIN), (21, 0, through("call"))],
        26,
        "ranks diverged: rank 1 is still inside call, 5.0 s after rank 0 passed in call "
        "(they wait for what can no longer come)",
    ),
    "stopped": (
        [*IN_CALL, seen(2, stopped=frozenset({1}))],
        7,
        "hung: rank 1 stopped (by a signal such as SIGSTOP) for 5.0 s: ranks 0,1 are still inside",
    ),
    "stopped twice, and between not": (
        [
            *IN_CALL,
            seen(2, stopped=frozenset({1})),
            seen(6, stopped=frozenset()),
            seen(8, stopped=frozenset({1})),
        ],
        13,
        "hung: rank 1 stopped (by a signal such as SIGSTOP) for 5.0 s",
    ),
    # pauses
    "a debugger stops the clock while it is attached": (
        [*IN_CALL, seen(2, debugged=frozenset({1})), seen(500, debugged=frozenset())],
        498 + TIMEOUT,
        "hung: no rank got through within 60 s",
    ),
    "a rank stops it": (
        [*IN_CALL, (2, 0, Pause(True, "pdb")), (500, 0, Pause(False))],
        498 + TIMEOUT,
        "hung: no rank got through within 60 s",
    ),
    "two stop it": (
        [
            *both(2, Pause(True, "pdb")),
            (3, 1, Pause(False)),
            seen(200, debugged=frozenset({1})),
            (500, 0, Pause(False)),
            seen(600, debugged=frozenset()),
        ],
        598 + TIMEOUT,
        "hung: no rank got through within 60 s",
    ),
    "a pause of the test's own goes on when the debugger leaves": (
        [
            (2, 0, Pause(True, "a look")),
            seen(3, debugged=frozenset({1})),
            seen(4, debugged=frozenset()),
            (500, 0, Pause(False)),
        ],
        498 + TIMEOUT,
        "hung: no rank got through within 60 s",
    ),
    "who is stopped again after a pause has the grace anew": (
        [
            *IN_CALL,
            seen(2, stopped=frozenset({1})),
            (3, 0, Pause(True, "pdb")),
            (100, 0, Pause(False)),
        ],
        100 + GRACE,
        "hung: rank 1 stopped (by a signal such as SIGSTOP) for 5.0 s",
    ),
    "also who is paused can die": (
        [*IN_CALL, (2, 0, Pause(True, "pdb")), (500, 1, GONE)],
        500,
        "rank died: rank 1 died in call",
    ),
    "whoever is stopped while paused has time": (
        [
            *IN_CALL,
            (2, 0, Pause(True, "pdb")),
            seen(3, stopped=frozenset({1})),
            seen(90, stopped=frozenset()),
            (100, 0, Pause(False)),
        ],
        98 + TIMEOUT,
        "hung: no rank got through within 60 s",
    ),
}


@pytest.mark.parametrize(("events", "when", "words"), VERDICTS.values(), ids=VERDICTS)
def test_verdict(events: list[Any], when: float, words: Any) -> None:
    run = SimulatedRun(2, TIMEOUT, GRACE).play(*events)
    assert words in str(run)
    assert when <= run.now <= when + TICK


def test_a_report_that_is_written_beside_a_rank_that_hangs() -> None:
    run = SimulatedRun(3, TIMEOUT, GRACE).play(
        *[(1, rank, through("setup")) for rank in range(3)],
        (3, 0, through("call", "failed")),
        (4, 1, WritesReport()),
    )
    assert "rank 2 is still inside call" in str(run)
    assert "(--pprank-grace: 5 s)" in str(run)
    assert 8 <= run.now <= 8 + TICK


PASSED = [*IN_CALL, *both(2, through("call")), *both(3, DONE)]
NO_VERDICT = {
    "both pass": PASSED,
    "one behind the other": [
        (1, 0, through("setup")),
        (20, 1, through("setup")),
        (20, 1, meeting()),
        (22, 0, meeting()),
        (36, 0, through("call")),
        (40, 1, through("call")),
        (41, 1, DONE),
        (45, 0, DONE),
    ],
    "both fail": [*IN_CALL, *both(2, through("call", "failed")), *both(3, DONE)],
    "in the last moment": [*PASSED[:-2], *both(TIMEOUT, DONE)],
    "just within the grace": [
        *IN_CALL,
        (3, 0, through("call", "failed")),
        (7.9, 1, through("call", "failed")),
        *both(8, DONE),
    ],
    "stopped for a while": [
        *IN_CALL,
        seen(2, stopped=frozenset({1})),
        seen(6, stopped=frozenset()),
        *both(20, through("call")),
        *both(21, DONE),
    ],
    "stopped before it got through": [
        *IN_CALL,
        seen(20, stopped=frozenset({1})),
        seen(20.4, stopped=frozenset()),
        (20.4, 1, through("call")),
        (38, 0, through("call")),
        *both(39, DONE),
    ],
    "in a debugger for long": [
        *IN_CALL,
        seen(2, debugged=frozenset({0})),
        (500, 1, through("call")),
        (600, 0, through("call")),
        *both(601, DONE),
    ],
    "the first is done twice": [*PASSED[:-2], (3, 0, DONE), (3, 0, DONE), (4, 1, DONE)],
}


@pytest.mark.parametrize("events", NO_VERDICT.values(), ids=NO_VERDICT)
def test_no_verdict(events: list[Any]) -> None:
    run = SimulatedRun(2, TIMEOUT, GRACE).play(*events)
    assert run.verdict is None
    assert run.state.over
    assert run.now == max(event[0] for event in events)


def answers(run: SimulatedRun) -> list[Any]:
    return [action for action in run.actions if isinstance(action, Answer)]


def test_a_meeting_is_answered_when_all_have_come() -> None:
    run = SimulatedRun().play(*IN_CALL, (2, 0, meeting(5)), (3, 1, meeting(6)), until=4)
    setup, *barrier = answers(run)
    assert setup.ranks == (0, 1)
    assert [(a.ranks, a.message.number, a.message.error) for a in barrier] == [
        ((0,), 5, ""),
        ((1,), 6, ""),
    ]


def test_different_meetings_are_both_called_off() -> None:
    others = Exchange(2, "gather()", "test_it.py:8", serial=SERIAL)
    run = SimulatedRun().play((1, 0, meeting()), (2, 1, others), until=3)
    errors = {answer.ranks: answer.message.error for answer in answers(run)}
    assert "rank 1 is in gather() at test_it.py:8" in errors[0,]
    assert "rank 0 is in barrier() at test_it.py:3" in errors[1,]


def test_a_meeting_of_an_earlier_test_is_refused() -> None:
    late = Exchange(9, "barrier()", "", serial=SERIAL - 1, report=report("setup", "failed"))
    run = SimulatedRun().play((1, 0, late), until=2)
    (answer,) = run.actions  # its contents are not kept
    assert isinstance(answer, Answer)
    assert (answer.ranks, answer.message.number) == ((0,), 9)
    assert answer.message.error == "barrier() belongs to a test that has ended"
    assert run.state.reports.by_rank == {0: [], 1: []}


def test_what_is_printed_belongs_to_the_phase_that_ends() -> None:
    subtest = PhaseReport(report("call", context={}))
    run = SimulatedRun().play((1, 0, through("setup")), (2, 0, subtest), (3, 0, DONE), until=4)
    over = [action for action in run.actions if isinstance(action, PhaseOver)]
    assert over == [PhaseOver(0, "setup"), PhaseOver(0, "teardown")]
    assert [it["when"] for it in run.state.reports.by_rank[0]] == ["setup", "call", "teardown"]


def test_a_short_test_is_not_looked_at() -> None:
    run = SimulatedRun().play((0.4, 0, meeting()), until=0.45)
    assert not run.looks
    run.play(until=1)
    assert {type(look) for _, look in run.looks} == {FindDebuggers, ReadLedgers, FindStopped}


def test_ledgers_that_take_long_to_read_are_read_less_often() -> None:
    run = SimulatedRun().play(seen(0, cost=0.5), until=20)
    first, *more = run.looked(ReadLedgers)
    assert first == 0.5
    assert [b - a for a, b in zip([first, *more], more, strict=False)] == [5.25] * 3


def test_the_ledgers_are_told_who_is_gone_and_who_meets() -> None:
    run = SimulatedRun(3).play(
        *((1, rank, through("setup")) for rank in range(3)),
        (2, 0, through("call", "failed")),
        until=4,
    )
    look = run.looks[-2][1]
    assert isinstance(look, ReadLedgers)
    assert look.gone == {0: "failed in call"}
    run = SimulatedRun().play((1, 1, meeting(4)), until=2)
    look = run.looks[-2][1]
    assert isinstance(look, ReadLedgers)
    (waits,) = look.meetings.items()
    assert (waits[0], waits[1].number, waits[1].missing) == (1, 4, (0,))


@pytest.mark.parametrize(
    ("message", "waits"),
    [
        (GONE, [AwaitEnd(1.0), AwaitEnd(5.0, forced=True)]),
        (RankBroken("no memory"), [AwaitEnd(0)]),
    ],
)
def test_how_long_the_end_of_a_group_is_awaited(message: Any, waits: list[Query]) -> None:
    run = SimulatedRun().play((0.25, 1, message))
    assert [look for _, look in run.looks] == waits


def test_stock_is_taken_when_all_that_can_answer_have() -> None:
    run = SimulatedRun(3).play((1, 0, LedgerUpdated()), (1, 0, LedgerUpdated()), until=2)
    assert not run.state.awaiting_ledgers([0])
    assert run.state.awaiting_ledgers([0, 1])
    run.happen(1, GONE)
    assert not run.state.awaiting_ledgers([0, 1])
    assert run.state.awaiting_ledgers([0, 1, 2])


def test_who_is_dead_is_not_inside() -> None:
    run = SimulatedRun().play((1, 1, GONE))
    assert run.state.inside() == {0: "setup"}
    assert run.state.progress() == {1: "died"}


def test_paused_ranks_are_listened_to() -> None:
    run = SimulatedRun().play((1, 0, Pause(True, "pdb")), until=80)
    assert run.judge.patience(80) == TICK


def test_a_verdict_is_final() -> None:
    run = SimulatedRun().play((1, 0, through("setup", "failed")))
    given = run.verdict
    assert given is not None
    assert given.kind == "ranks diverged"
    run.happen(1, through("setup", "failed"))
    run.now += 100
    assert run.decide() is given


def test_but_a_rank_that_dies_while_it_is_looked_at_is_the_cause() -> None:
    run = SimulatedRun().play((1, 0, through("setup", "failed")))
    run.happen(1, GONE)
    died = run.decide()
    assert str(run) == "rank died: rank 1 died in setup: it closed its connection"
    run.happen(0, GONE)
    assert run.decide() is died


def test_of_a_test_that_is_given_up_only_reports_are_taken() -> None:
    run = SimulatedRun().play(*IN_CALL, until=2)
    assert [*run.state.take_last(0, through("call", "failed"))] == [PhaseOver(0, "call")]
    assert [*run.state.take_last(1, DONE)] == [PhaseOver(1, "teardown")]
    assert [*run.state.take_last(0, GONE)] == []
    assert (run.state.arrived(), run.state.dead) == (set(), {})
    assert run.state.reports.last(0) == "failed in call"
