"""Meetings take place when all ranks have come, and are cancelled once that is impossible."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_pprank.oplog.read.meetings import Meetings
from pytest_pprank.protocol.messages import Exchange, Exchanged


class Answers(dict[int, Exchanged]):
    """Records the answer to each rank."""

    def __call__(self, ranks: Iterable[int], message: Exchanged) -> None:
        assert not self.keys() & set(ranks), "answered twice"
        self.update(dict.fromkeys(ranks, message))


@pytest.fixture
def answers() -> Answers:
    return Answers()


def barrier(number: int = 1) -> Exchange:
    return Exchange(number, "barrier()", "test_x.py:3")


def phase_end(phase: str, outcome: str = "passed") -> Exchange:
    return Exchange(9, f"end of {phase}", outcome)


def test_takes_place_when_the_last_has_come(answers: Answers) -> None:
    meetings = Meetings(3, answers)
    for rank in (2, 0):
        meetings.arrive(rank, Exchange(rank + 5, "gather()", "", b"%d" % rank))
    assert not answers
    meetings.arrive(1, Exchange(6, "gather()", "", b"1"))
    assert {r: a.payloads for r, a in answers.items()} == dict.fromkeys(
        range(3), (b"0", b"1", b"2")
    )
    assert {r: a.number for r, a in answers.items()} == {0: 5, 1: 6, 2: 7}


def test_two_operations_never_pair(answers: Answers) -> None:
    meetings = Meetings(2, answers)
    meetings.arrive(0, barrier())
    meetings.arrive(1, Exchange(1, "gather()", "test_x.py:7"))
    assert "rank 1 is in gather() at test_x.py:7" in answers[0].error
    assert "rank 0 is in barrier() at test_x.py:3" in answers[1].error


def test_a_waiting_rank_is_released_when_a_peer_is_through(answers: Answers) -> None:
    meetings = Meetings(3, answers)
    meetings.arrive(1, barrier())
    meetings.arrive(0, phase_end("call", "failed"))
    assert list(answers) == [1]
    assert "rank 0 is through with call (failed)" in answers[1].error
    answers.clear()
    # ... and the rank that has finished still meets the others at the end of the phase
    meetings.arrive(1, phase_end("call", "failed"))
    meetings.arrive(2, phase_end("call"))
    assert not answers[0].error


@pytest.mark.parametrize("why", ["died", "finished the test"])
def test_nobody_waits_for_a_rank_that_is_gone(answers: Answers, why: str) -> None:
    meetings = Meetings(2, answers)
    meetings.arrive(0, barrier())
    meetings.leave(1, why)
    assert f"rank 1 {why}" in answers[0].error


def test_a_thread_left_in_a_meeting_is_released_when_its_own_rank_is_through(
    answers: Answers,
) -> None:
    meetings = Meetings(2, answers)
    meetings.arrive(0, barrier())
    meetings.leave(0, "finished the test")
    assert "rank 0 waits in barrier() at test_x.py:3 in vain: it has itself" in answers[0].error


def test_who_comes_too_late_is_told_at_once(answers: Answers) -> None:
    meetings = Meetings(2, answers)
    meetings.leave(1, "died")
    meetings.arrive(0, phase_end("call"))
    assert "rank 1 died" in answers[0].error


def test_where_ranks_are(answers: Answers) -> None:
    meetings = Meetings(3, answers)
    meetings.arrive(0, phase_end("setup"))
    assert meetings.at_end_of_phase() == {0: "setup"}
    assert meetings.waiting() == {}
    meetings = Meetings(3, answers)
    meetings.arrive(2, barrier())
    assert meetings.waiting() == {2: "in barrier() at test_x.py:3"}


def test_meetings_after_a_rank_was_killed_are_those_of_the_others(answers: Answers) -> None:
    meetings = Meetings(3, answers)
    for rank in (0, 2):
        meetings.arrive(rank, Exchange(1, "gather()", "", b"%d" % rank))
    assert meetings.blocked()[0].missing == (1,)
    meetings.lose(1)
    assert {r: a.payloads for r, a in answers.items()} == dict.fromkeys((0, 2), (b"0", None, b"2"))
    answers.clear()
    meetings.arrive(0, barrier(2))
    assert meetings.blocked()[0].missing == (2,)
    meetings.leave(2, "finished the test")
    assert "in vain: rank 2 finished the test" in answers[0].error


def test_a_killed_rank_waits_for_nothing(answers: Answers) -> None:
    meetings = Meetings(2, answers)
    meetings.arrive(1, barrier())
    meetings.lose(1)
    assert not answers
    meetings.arrive(0, Exchange(1, "gather()", "", b"0"))
    assert answers[0].payloads == (b"0", None)
