"""Which rank waits for which, from hand-made ledgers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pytest_pprank.oplog.file import (
    COLLECTIVE,
    CREATE,
    RECV,
    SEND,
    STORE,
    Channel,
    Ledger,
    Operation,
    Site,
    State,
)
from pytest_pprank.oplog.read.text import describe
from pytest_pprank.oplog.read.wait_graph import (
    InMeeting,
    Waits,
    explain_waits,
    left_over,
    summary,
    waits_in,
)
from pytest_pprank.oplog.read.watch import Waiting

FINISHED = "finished the test"


class Rank:
    """Makes the ledger of one rank, operation by operation."""

    def __init__(
        self, rank: int, world: int = 2, threads: tuple[str, ...] = ("MainThread",)
    ) -> None:
        self.rank = rank
        self.world = tuple(range(world))
        self.threads = threads
        self.operations: list[Operation] = []
        self.counts: dict[Channel, int] = {}

    def _add(self, kind: str, way: str, state: State, **fields: Any) -> Rank:
        fields = {
            "label": "default group",
            "group": "0",
            "ranks": self.world,
            "backend": "gloo",
            "shapes": ((4,),),
            "tensors": 1,
            "dtype": "float32",
            "nbytes": 16,
            "site": Site("/code/a.py", 10 + len(self.operations), "f"),
            **fields,
        }
        number = len(self.operations) + 1
        times: dict[str, Any] = {"start": 1.0, "end": 0.0, "serial": 1, "turn": 0, "sequence": 0}
        operation = Operation(kind, way, number=number, state=state, **times, **fields)
        count = self.counts[operation.channel] = self.counts.get(operation.channel, 0) + 1
        self.operations.append(dataclasses.replace(operation, turn=count, sequence=count))
        return self

    def send(self, peer: int, state: State = State.WAITING, **fields: Any) -> Rank:
        return self._add("send", SEND, state, peer=peer, **fields)

    def recv(self, peer: int | None, state: State = State.WAITING, **fields: Any) -> Rank:
        return self._add("recv", RECV, state, peer=peer, **fields)

    def collective(
        self, kind: str = "all_reduce", state: State = State.WAITING, **fields: Any
    ) -> Rank:
        return self._add(kind, COLLECTIVE, state, **fields)

    def new_group(self, state: State = State.WAITING, **fields: Any) -> Rank:
        return self._add("new_group", CREATE, state, tensors=0, shapes=(), nbytes=0, **fields)

    def ledger(self, **changes: Any) -> Ledger:
        ledger = Ledger(
            rank=self.rank,
            serial=1,
            threads=self.threads if self.operations else (),
            operations=tuple(self.operations),
            counts=dict(self.counts),
        )
        return dataclasses.replace(ledger, **changes)


def explain(*ranks: Rank | Ledger, **places: str) -> Waits:
    ledgers = {r.rank: r.ledger() if isinstance(r, Rank) else r for r in ranks}
    return explain_waits(ledgers, {int(name[1:]): place for name, place in places.items()})


def test_nobody_waits() -> None:
    one = Rank(1).collective(state=State.COMPLETED)
    assert explain(Rank(0).collective(state=State.COMPLETED), one) == Waits()


def test_a_finished_peer_has_not_sent() -> None:
    site = Site("/x/scheduler_pp_mixin.py", 990, "_pp_recv")
    receiver = Rank(1).recv(0, tag=3, shapes=((4, 8),), nbytes=128, site=site)
    waits = explain(Rank(0), receiver, r0=FINISHED)
    assert waits.lines == (
        "rank 1 waits in recv from rank 0 (scheduler_pp_mixin.py:990 in _pp_recv, tag 3, "
        "float32[4,8], 128 B, default group); rank 0 finished the test without sending",
    )
    assert waits.hopeless == waits.stuck == {1}
    assert waits.key == {(1, 1)}
    assert not waits.deadlock


def test_a_dead_peer_does_not_receive() -> None:
    waits = explain(Rank(0), Rank(1).send(0), r0="died")
    assert waits.lines[0].endswith("; rank 0 died without receiving")
    assert waits.hopeless == {1}


@pytest.mark.parametrize("state", [State.ISSUED, State.COMPLETED, State.DROPPED])
def test_a_message_that_was_issued_may_still_arrive(state: State) -> None:
    waits = explain(Rank(0).send(1, state), Rank(1).recv(0), r0=FINISHED)
    assert not waits.hopeless
    assert "rank 0 has begun sending it" in waits.lines[0]


def test_an_earlier_message_does_not_help() -> None:
    sender = Rank(0).send(1, State.COMPLETED)
    waits = explain(sender, Rank(1).recv(0, State.COMPLETED).recv(0), r0=FINISHED)
    assert waits.hopeless == {1}


def test_a_message_with_another_tag_is_pointed_at() -> None:
    waits = explain(Rank(0).send(1, State.ISSUED, tag=4), Rank(1).recv(0, tag=3), r0=FINISHED)
    assert waits.lines[0].endswith("without sending; it sent to rank 1 with tag 4 (a.py:10 in f)")
    assert waits.hopeless == {1}


def test_nccl_needs_no_tags() -> None:
    sender = Rank(0).send(1, State.QUEUED, tag=4, backend="nccl")
    assert not explain(sender, Rank(1).recv(0, tag=3, backend="nccl"), r0=FINISHED).hopeless


def test_a_peer_in_another_group_does_not_help() -> None:
    sender = Rank(0).send(1, State.ISSUED, group="7", label="group tp")
    waits = explain(sender, Rank(1).recv(0), r0=FINISHED)
    assert waits.hopeless == {1}
    assert "it sent to rank 1 with group tp of ranks 0,1" in waits.lines[0]


def test_a_peer_that_is_still_inside_may_yet_send() -> None:
    waits = explain(Rank(0), Rank(1).recv(0))
    assert waits.lines[0].endswith("; rank 0 is in no distributed operation")
    assert waits.stuck == waits.hopeless == frozenset()


def test_a_peer_that_had_another_thread_may_yet_send() -> None:
    sender = Rank(0, threads=("MainThread", "sender")).send(1, State.COMPLETED, tag=1)
    assert not explain(sender, Rank(1).recv(0), r0=FINISHED).hopeless


def test_an_unreadable_ledger_proves_nothing() -> None:
    waits = explain(Ledger(-1, problem="no ledger"), Rank(1).recv(0), r0="died")
    assert not waits.hopeless
    assert "nothing is known of rank 0" in waits.lines[0]
    assert not explain_waits({1: Rank(1).recv(0).ledger()}, {0: "died"}).hopeless


@pytest.mark.parametrize("gap", [{"unrecorded": 1}, {"uncounted": True}, {"torn": 1}])
def test_a_ledger_with_gaps_proves_nothing(gap: dict[str, object]) -> None:
    assert not explain(Rank(0).ledger(**gap), Rank(1).recv(0), r0=FINISHED).hopeless
    circle = explain(Rank(0).recv(1).ledger(**gap), Rank(1).recv(0))
    assert not circle.deadlock
    assert circle.lines[0].startswith("likely deadlock: ")


def test_mutual_recv_is_a_deadlock() -> None:
    waits = explain(Rank(0).recv(1), Rank(1).recv(0))
    assert waits.deadlock == (0, 1)
    assert waits.stuck == {0, 1}
    assert waits.key == {(0, 1), (1, 1)}
    assert waits.lines == (
        "deadlock: rank 0 waits in recv from rank 1 (a.py:10 in f, float32[4], 16 B, default "
        "group),\n          "
        "rank 1 waits in recv from rank 0 (a.py:10 in f, float32[4], 16 B, default group)",
    )


def test_mutual_send_is_a_deadlock() -> None:
    assert explain(Rank(0).send(1), Rank(1).send(0)).deadlock == (0, 1)


def test_a_send_that_meets_a_recv_is_none() -> None:
    waits = explain(Rank(0).send(1), Rank(1).recv(0))
    assert not waits.deadlock
    assert not waits.stuck


def test_an_issued_send_breaks_the_circle() -> None:
    assert not explain(Rank(0).send(1, State.ISSUED).recv(1), Rank(1).recv(0)).deadlock


def test_an_issued_recv_breaks_the_circle_of_sends() -> None:
    assert not explain(Rank(0).recv(1, State.ISSUED).send(1), Rank(1).send(0)).deadlock


def test_an_issued_recv_from_anybody_breaks_the_circle_of_sends() -> None:
    assert not explain(Rank(0).recv(None, State.ISSUED).send(1), Rank(1).send(0)).deadlock


def test_three_in_a_circle() -> None:
    waits = explain(Rank(0, 3).recv(2), Rank(1, 3).recv(0), Rank(2, 3).recv(1))
    assert waits.deadlock == (0, 2, 1)
    assert len(waits.lines) == 1


def test_who_waits_for_a_circle_is_stuck_too() -> None:
    waits = explain(Rank(0, 3).recv(1), Rank(1, 3).recv(0), Rank(2, 3).recv(0))
    assert waits.deadlock == (0, 1)
    assert waits.stuck == {0, 1, 2}
    assert waits.lines[1].startswith("rank 2 waits in recv from rank 0")


def test_two_circles() -> None:
    ranks = [Rank(rank, 4).recv(rank ^ 1) for rank in range(4)]
    assert explain(*ranks).deadlock == (0, 1, 2, 3)


def test_a_circle_through_a_collective() -> None:
    waits = explain(Rank(0).collective(), Rank(1).recv(0))
    assert waits.deadlock == (0, 1)
    assert "all_reduce #1 (a.py:10 in f, float32[4], 16 B, default group) for rank 1" in str(waits)


def test_a_circle_through_two_groups() -> None:
    first = Rank(0).collective(group="a")
    assert explain(first, Rank(1).collective(group="b")).deadlock == (0, 1)


def test_a_second_thread_may_break_a_circle() -> None:
    waits = explain(Rank(0, threads=("MainThread", "other")).recv(1), Rank(1).recv(0))
    assert not waits.deadlock
    assert not waits.stuck
    assert waits.lines[0].startswith("likely deadlock: ")


def test_a_rank_that_is_gone_is_in_no_circle() -> None:
    waits = explain(Rank(0).recv(1), Rank(1).recv(0), r0="failed in call")
    assert not waits.deadlock
    assert waits.hopeless == {1}


def test_a_rank_that_died_while_it_waited_does_not_wait() -> None:
    waits = explain(Rank(0), Rank(1).recv(0), r0=FINISHED, r1="died")
    assert waits == Waits()


def test_who_waits_for_a_hopeless_one_is_stuck() -> None:
    waits = explain(Rank(0, 3), Rank(1, 3).recv(0), Rank(2, 3).recv(1), r0="died")
    assert waits.hopeless == {1}
    assert waits.stuck == {1, 2}
    assert waits.key == {(1, 1), (2, 1)}


def test_recv_from_anybody_needs_only_one_of_them() -> None:
    waiting = Rank(0, 3).recv(None)
    assert not explain(waiting, Rank(1, 3), Rank(2, 3), r1=FINISHED).hopeless
    assert explain(waiting, Rank(1, 3), Rank(2, 3), r1=FINISHED, r2=FINISHED).hopeless == {0}
    assert explain(waiting, Rank(1, 3).recv(0), Rank(2, 3).recv(1)).deadlock
    assert not explain(waiting, Rank(1, 3).send(0), Rank(2, 3)).stuck
    assert not explain(waiting, Rank(1, 3).recv(0), Rank(2, 3)).stuck
    half = explain(waiting, Rank(1, 3).recv(0), Rank(2, 3), r2="died")
    assert half.stuck == {0, 1}
    assert half.hopeless == frozenset()


def test_a_rank_has_not_come_to_a_collective() -> None:
    ranks = [Rank(rank, 3).collective(state=State.COMPLETED).collective() for rank in (0, 1)]
    behind = Rank(2, 3).collective(state=State.COMPLETED).recv(1, tag=2)
    waits = explain(*ranks, behind)
    assert waits.deadlock == (1, 2)
    assert waits.stuck == {0, 1, 2}
    assert waits.lines[1].startswith(
        "rank 2 has not come to all_reduce #2 of default group where ranks 0,1 wait (a.py:11 in f)"
        "; rank 2 is in recv from rank 1 (a.py:11 in f, tag 2,"
    )


def test_a_slow_rank_has_not_come_yet() -> None:
    ranks = [Rank(rank, 3).collective() for rank in (0, 1)]
    waits = explain(*ranks, Rank(2, 3))
    assert waits.lines == (
        "rank 2 has not come to all_reduce #1 of default group where ranks 0,1 wait "
        "(a.py:10 in f); rank 2 is in no distributed operation",
    )
    assert not waits.stuck


def test_a_rank_that_is_gone_will_not_come_to_a_collective() -> None:
    waits = explain(Rank(0).collective(), Rank(1), r1="failed in call")
    assert waits.lines[0].endswith("; rank 1 failed in call without coming to it")
    assert waits.hopeless == {0}


def test_a_rank_that_has_been_there_is_not_missed() -> None:
    waits = explain(Rank(0).collective(), Rank(1).collective(state=State.ISSUED), r1=FINISHED)
    assert not waits.hopeless
    assert "all members have come to it" in waits.lines[0]


def test_only_members_of_a_group_are_missed() -> None:
    pair: dict[str, Any] = {"group": "3", "label": "group tp", "ranks": (1, 2)}
    waits = explain(Rank(0, 3), Rank(1, 3).collective(**pair), Rank(2, 3), r0="died", r2=FINISHED)
    assert "group tp of ranks 1,2); rank 2 finished the test without" in waits.lines[0]
    assert waits.hopeless == {1}
    away = explain(Rank(0, 3), Rank(1, 3).collective(**pair), Rank(2, 3), r0="died")
    assert not away.hopeless


def test_a_broadcast_needs_its_root_only() -> None:
    waiting = Rank(1, 3).collective("broadcast", root=0)
    root = Rank(0, 3).collective("broadcast", State.COMPLETED, root=0)
    assert not explain(root, waiting, Rank(2, 3), r2="died").hopeless
    assert explain(Rank(0, 3), waiting, Rank(2, 3), r0="died").hopeless == {1}


def test_a_reduce_needs_all_at_its_root_only() -> None:
    ranks = [Rank(rank, 3).collective("reduce", root=0) for rank in (0, 1)]
    assert explain(*ranks, Rank(2, 3), r2="died").hopeless == {0}


def test_a_reduce_scatter_is_no_reduce() -> None:
    waits = explain(Rank(0).collective("reduce_scatter_tensor"), Rank(1), r1="died")
    assert waits.hopeless == {0}


def test_different_collectives_at_the_same_place() -> None:
    site = Site("/code/b.py", 12, "g")
    ranks = [Rank(r).collective(state=State.COMPLETED) for r in (0, 1)]
    ranks[0].collective()
    ranks[1].collective("broadcast", root=0, site=site)
    waits = explain(*ranks)
    assert waits.mismatch
    assert waits.key == {(0, 2), (1, 2)}
    assert waits.lines == (
        "mismatch in default group: rank 0 all_reduce #2 (a.py:11 in f, float32[4], 16 B), "
        "rank 1 broadcast #2 (b.py:12 in g, root 0, float32[4], 16 B)",
    )


@pytest.mark.parametrize(
    "other",
    [
        {"shapes": ((8,),), "nbytes": 32},
        {"dtype": "int32"},
        {"detail": "MAX"},
        {"tensors": 2, "shapes": ((2,), (2,))},
    ],
)
def test_one_collective_with_different_arguments(other: dict[str, Any]) -> None:
    first = Rank(0).collective(detail="SUM")
    assert explain(first, Rank(1).collective(**{"detail": "SUM", **other})).mismatch


def test_different_roots() -> None:
    first = Rank(0).collective("broadcast", State.COMPLETED, root=0)
    assert explain(first, Rank(1).collective("broadcast", root=1)).mismatch


@pytest.mark.parametrize("other", [{"shapes": ((2, 2),)}, {"detail": ""}])
def test_what_need_not_be_a_mismatch(other: dict[str, Any]) -> None:
    first = Rank(0).collective(detail="SUM")
    assert not explain(first, Rank(1).collective(**{"detail": "SUM", **other})).mismatch


def test_all_to_all_may_be_uneven() -> None:
    first = Rank(0).collective("all_to_all_single")
    assert not explain(first, Rank(1).collective("all_to_all_single", nbytes=64)).mismatch


def test_what_is_done_everywhere_has_fitted() -> None:
    first = Rank(0).collective(state=State.COMPLETED)
    assert not explain(first, Rank(1).collective("broadcast", State.COMPLETED)).mismatch


def test_a_failed_collective_is_a_mismatch_in_its_own_test_only() -> None:
    first = Rank(0).collective(state=State.FAILED)
    other = Rank(1).collective("broadcast", State.COMPLETED)
    assert explain(first, other).mismatch
    assert not explain(first.ledger(serial=2), other.ledger(serial=2)).mismatch


def test_a_receiver_that_expects_another_size() -> None:
    receiver = Rank(1).recv(0, State.FAILED, nbytes=32, shapes=((8,),))
    waits = explain(Rank(0).send(1, State.COMPLETED), receiver)
    assert waits.mismatch
    assert waits.lines[0].startswith("mismatch: rank 0 send to rank 1 (a.py:10 in f, float32[4]")
    assert "rank 1 recv from rank 0 (a.py:10 in f, float32[8], 32 B" in waits.lines[0]


def test_a_group_that_only_one_rank_creates() -> None:
    pair: dict[str, Any] = {"group": "5", "label": "group 5"}
    waits = explain(Rank(0).new_group(**pair), Rank(1), r1=FINISHED)
    assert waits.hopeless == {0}
    assert "waits in new_group (a.py:10 in f, group 5 of ranks 0,1)" in waits.lines[0]


def test_a_wait_in_a_store_is_told_and_nobody_is_accused() -> None:
    waiting = Rank(0)._add("store.get", STORE, State.WAITING, group="", label="", ranks=(),
                           tensors=0, nbytes=0, detail="key x")  # fmt: skip
    waits = explain(waiting, Rank(1), r1=FINISHED)
    assert waits.lines == ("rank 0 waits in store.get (a.py:10 in f, key x)",)
    assert not waits.stuck


def test_a_device_waits_while_its_rank_is_elsewhere() -> None:
    waiting = Rank(0).collective(state=State.COMPLETED, backend="nccl")
    waiting.recv(1, State.RUNNING, backend="nccl").recv(1, State.RUNNING, backend="nccl")
    waits = explain(waiting, Rank(1).collective(state=State.COMPLETED), r1=FINISHED)
    assert len(waits.lines) == 1
    assert waits.lines[0].startswith("the device of rank 0 waits in recv from rank 1 (a.py:11 in f")
    assert waits.lines[0].endswith("; rank 1 finished the test without sending")
    assert not waits.stuck  # the rank itself may continue
    mutual = explain(Rank(0).recv(1, State.RUNNING), Rank(1).recv(0, State.RUNNING))
    assert not mutual.deadlock
    assert mutual.lines[0].startswith("likely deadlock: the device of rank 0 waits in recv")


def test_devices_that_came_to_different_collectives() -> None:
    first = Rank(0).collective("all_reduce", state=State.RUNNING, backend="nccl")
    second = Rank(1).collective("broadcast", state=State.RUNNING, backend="nccl")
    waits = explain(first, second)
    assert waits.mismatch
    blocked = frozenset(
        number for number, it in enumerate((first, second)) if waits_in(it.ledger())
    )
    assert blocked == {0, 1}
    assert Waiting(waits, blocked, 5.0).standstill([0, 1]) == "mismatch"
    # a thread that waits says more than the device
    both = Rank(0).collective(state=State.RUNNING, backend="nccl").recv(1)
    assert [operation.kind for operation in waits_in(both.ledger())] == ["recv"]


def test_what_is_merely_queued_is_not_accused() -> None:
    waits = explain(Rank(0).recv(1, State.QUEUED, backend="nccl"), Rank(1), r1=FINISHED)
    assert waits == Waits()


def test_the_key_changes_with_the_operation() -> None:
    before = explain(Rank(0).recv(1), Rank(1).recv(0))
    again = explain(Rank(0).recv(1), Rank(1).recv(0))
    later = explain(Rank(0).send(1, State.COMPLETED).recv(1),
                    Rank(1).recv(0, State.COMPLETED).recv(0))  # fmt: skip
    assert before.key == again.key
    assert later.deadlock == before.deadlock
    assert later.key != before.key


def test_summary_is_bounded_and_says_what_is_missing() -> None:
    rank = Rank(0)
    for _ in range(30):
        rank.collective(state=State.COMPLETED)
    for _ in range(40):
        rank.send(1, State.ISSUED)
    lines = summary(rank.ledger(unrecorded=2, torn=1)).splitlines()
    assert lines[0] == "last finished (8 of 30):"
    assert lines[9] == "pending (16 of 40):"
    assert lines[10].endswith(": issued, not waited for")
    assert lines[-2].startswith("2 operations are missing here")
    assert lines[-1] == "1 records are damaged"
    assert len(lines) == 1 + 8 + 1 + 16 + 2


def test_summary_of_a_rank_without_operations() -> None:
    assert summary(Rank(0).ledger()) == "last finished: none\npending: none"
    assert summary(Ledger(-1, problem="no ledger")) == "no ledger"


def test_summary_names_threads_errors_and_leftovers() -> None:
    rank = Rank(0, threads=("MainThread", "io")).send(1, State.FAILED, error="closed", thread="io")
    assert "failed: closed, thread io" in summary(rank.ledger())
    leaked = Rank(0).send(1, State.ISSUED)
    assert "left over from an earlier test" in summary(leaked.ledger(serial=2))


def test_many_tensors_are_described_in_short() -> None:
    (operation,) = Rank(0).collective(shapes=((2,),) * 3, tensors=3).operations
    assert "3 x float32[2]" in describe(operation)
    (operation,) = Rank(0).collective(shapes=((2,), (3,), (4,), (5,)), tensors=9).operations
    assert "float32[2], float32[3], float32[4] and 6 more" in describe(operation)


def left(*ranks: Rank) -> tuple[str, ...]:
    return left_over({rank.rank: rank.ledger() for rank in ranks})


def test_a_send_that_nobody_receives_is_left_over() -> None:
    (line,) = left(Rank(0).send(1, state=State.ISSUED), Rank(1))
    assert line.startswith("rank 0 left send to rank 1 (a.py:10 in f")
    assert line.endswith("which rank 1 did not receive")


@pytest.mark.parametrize("state", [State.ISSUED, State.DROPPED])
def test_what_was_met_or_is_done_is_not_left_over(state: State) -> None:
    assert left(Rank(0).send(1, state=state), Rank(1).recv(0, state=State.COMPLETED)) == ()
    assert left(Rank(0).send(1, state=State.COMPLETED), Rank(1)) == ()


def test_a_collective_of_one_rank_is_left_over() -> None:
    (line,) = left(Rank(0).collective(state=State.ISSUED), Rank(1))
    assert line.endswith("which rank 1 did not come to")


def test_message_whose_handle_is_gone_is_lost() -> None:
    """gloo cancels a send whose handle is dropped: its receiver waits for ever."""
    sender = Rank(0).send(1, State.DROPPED, tag=1).send(1, tag=2)
    waits = explain(sender, Rank(1).recv(0, tag=1))
    assert waits.deadlock == (0, 1)
    assert "waits in recv from rank 0" in waits.lines[0]
    arrived = explain(sender, Rank(1).recv(0, State.COMPLETED, tag=1).recv(0, tag=2))
    assert arrived.deadlock == ()


def in_meeting(*ranks: Rank, missing: tuple[int, ...], number: int = 4) -> Waits:
    """Explain the waits of ranks 0 and 1, of which the second one waits in a meeting."""
    ledgers = {rank.rank: rank.ledger() for rank in ranks}
    return explain_waits(ledgers, {}, {1: InMeeting("gather at test_a.py:7", number, missing)})


def test_operation_that_needs_a_rank_in_a_meeting_is_a_deadlock() -> None:
    waits = in_meeting(Rank(0).collective("barrier"), Rank(1), missing=(0,))
    assert waits.deadlock == (0, 1)
    assert waits.key == {(0, 1), (1, -5)}
    assert waits.lines == (
        "deadlock: rank 0 waits in barrier #1 (a.py:10 in f, float32[4], 16 B, default group) "
        "for rank 1,\n"
        "          rank 1 waits in gather at test_a.py:7 for rank 0",
    )


def test_rank_in_a_meeting_whose_other_thread_may_come_is_none() -> None:
    waits = in_meeting(
        Rank(0).collective("barrier"),
        Rank(1, threads=("loop",)).send(0, State.COMPLETED),
        missing=(0,),
    )
    assert not waits.deadlock
    assert "likely deadlock" in waits.lines[0]


def test_operation_that_the_rank_in_a_meeting_has_done_is_no_deadlock() -> None:
    waits = in_meeting(Rank(0).recv(1), Rank(1).send(0, State.COMPLETED), missing=(0,))
    assert not waits.deadlock
