"""Works out who waits for whom from the ledgers of all ranks. Pure functions, without I/O.

Operations of two ranks are paired by counting: the n-th send from rank 0 to rank 1 with some tag in
some group is received by rank 1's n-th recv of that tag and group. The n-th collective of a group
on one rank belongs to the n-th on the others. An operation is *unmet* while a rank that it needs
has not issued its part.

The ledgers are read one after another while the ranks go on, so a single reading proves nothing. A
caller that sees the same `key` in two readings knows that the named ranks did not move in between.
Then the statements about them were true all that time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_pprank.oplog.file import (
    COLLECTIVE,
    CREATE,
    RECV,
    SEND,
    STORE,
    Ledger,
    Operation,
    State,
)
from pytest_pprank.oplog.read.mismatches import find_mismatches
from pytest_pprank.oplog.read.text import describe, group, name, place, summary
from pytest_pprank.oplog.read.waits import Blocked, InMeeting, MeetingWait, Unmet, Wait, Waits
from pytest_pprank.words import plural_ranks

__all__ = ["InMeeting", "Waits", "explain_waits", "summary"]

_MAIN = "MainThread"
"""The name of the thread that runs the tests on a rank."""
_UNFINISHED = (State.ISSUED, State.WAITING, State.DROPPED)
_FROM_ROOT = ("broadcast", "scatter")
_TO_ROOT = ("reduce", "gather")


def explain_waits(
    ledgers: Mapping[int, Ledger],
    places: Mapping[int, str],
    meetings: Mapping[int, InMeeting] | None = None,
) -> Waits:
    """Return who waits for whom, and which waits cannot end.

    `places` says of each rank that is no longer inside the test what became of it (``finished the
    test``, ``failed in call``, ``died``). `meetings`: the ranks that wait in a meeting.
    """
    return _Graph(ledgers, places, meetings or {}).explain()


def left_over(ledgers: Mapping[int, Ledger]) -> tuple[str, ...]:
    """Return, in words, the operations of a finished test that no other rank has matched yet.

    Operations of the next test would match them.
    """
    return tuple(_Graph(ledgers, {}, {}).left_over())


def unmet(ledgers: Mapping[int, Ledger]) -> tuple[Unmet, ...]:
    """Return the operations of this test that are not done, and lack the part of another rank."""
    return tuple(_Graph(ledgers, {}, {}).unmet())


class _Graph:
    def __init__(
        self,
        ledgers: Mapping[int, Ledger],
        places: Mapping[int, str],
        meetings: Mapping[int, InMeeting],
    ) -> None:
        self._ledgers = dict(sorted(ledgers.items()))
        self._gone = places
        self._waits = [
            self._wait(rank, operation)
            for rank, ledger in self._ledgers.items()
            if rank not in places  # for the others `places` says more than their last operation
            for operation in waits_in(ledger)
        ]
        self._meeting_waits = {
            rank: MeetingWait(rank, meeting)
            for rank, meeting in meetings.items()
            if rank not in places and rank in self._ledgers and not self._ledgers[rank].waiting
        }
        self._mismatches = find_mismatches(self._ledgers)

    def explain(self) -> Waits:
        proven = self._stuck(self._proven_waits())
        likely = self._stuck({**self._meeting_waits, **{wait.rank: wait for wait in self._waits}})
        cycles = _cycles(proven)
        likely_cycles = [c for c in _cycles(likely) if not any(set(c) <= set(p) for p in cycles)]
        hopeless = {wait.rank for wait in self._waits if wait.certain and self._in_vain(wait)}
        key = {wait.part for wait in proven.values()}
        key |= {wait.part for wait in self._waits if wait.rank in hopeless}
        key |= {part for mismatch in self._mismatches for part in mismatch.key}
        return Waits(
            lines=tuple(self._lines(cycles, proven, likely_cycles, likely)),
            deadlock=tuple(rank for cycle in cycles for rank in cycle),
            mismatch=bool(self._mismatches),
            hopeless=frozenset(hopeless),
            stuck=frozenset(proven) | hopeless,
            key=frozenset(key),
            blocked=(*self._waits, *self._meeting_waits.values()),
        )

    def left_over(self) -> Iterator[str]:
        for unmet in self.unmet():
            yield f"rank {unmet.rank} left {unmet}"

    def unmet(self) -> Iterator[Unmet]:
        for rank, ledger in self._ledgers.items():
            for operation in ledger.operations:
                if operation.serial == ledger.serial and operation.state in _UNFINISHED:
                    missing = self._missing(rank, operation)
                    if missing:
                        yield Unmet(rank, operation, missing)

    # what an operation waits for

    def _missing(self, rank: int, operation: Operation) -> tuple[int, ...]:
        if operation.way in (SEND, RECV):
            return self._missing_peers(rank, operation)
        return tuple(self._absent(rank, operation))

    def _wait(self, rank: int, operation: Operation) -> Wait:
        missing = self._missing(rank, operation)
        lost = not missing and operation.way == RECV and self._send_was_dropped(rank, operation)
        if lost and operation.peer is not None:
            missing = (operation.peer,)
        asked = operation.ranks if operation.peer is None else (operation.peer,)
        known = all(r in self._ledgers and self._ledgers[r].complete for r in asked)
        return Wait(
            rank=rank,
            operation=operation,
            missing=missing,
            needs_all=not (operation.way == RECV and operation.peer is None),
            certain=bool(
                known
                and missing
                and operation.state is State.WAITING
                and _needs_each(rank, operation, missing)
            ),
            lost=lost,
        )

    def _absent(self, rank: int, operation: Operation) -> Iterator[int]:
        for member in operation.ranks:
            ledger = self._ledgers.get(member)
            if member == rank or ledger is None:
                continue
            if ledger.count(operation.channel) < operation.sequence:
                yield member

    def _missing_peers(self, rank: int, operation: Operation) -> tuple[int, ...]:
        if operation.peer is not None:
            met = self._issued_by(operation.peer, rank, operation) >= operation.sequence
            return () if met else (operation.peer,)
        peers = tuple(member for member in operation.ranks if member != rank)
        sent = sum(self._issued_by(peer, rank, operation) for peer in peers)
        return () if sent >= operation.sequence else peers

    def _send_was_dropped(self, rank: int, recv: Operation) -> bool:
        """Return whether the handle of the send that `recv` waits for was deleted."""
        ledger = None if recv.peer is None else self._ledgers.get(recv.peer)
        channel = recv.channel.counterpart(rank)
        return ledger is not None and any(
            sent.state is State.DROPPED
            and sent.channel == channel
            and sent.sequence == recv.sequence
            for sent in ledger.operations
        )

    def _issued_by(self, peer: int, rank: int, operation: Operation) -> int:
        """Return how many operations of `peer` can match one like `operation`, at most."""
        ledger = self._ledgers.get(peer)
        if ledger is None:
            return 0
        channel = operation.channel.counterpart(rank)
        from_anybody = channel._replace(peer=None)
        return ledger.count(channel) + (ledger.count(from_anybody) if channel.way == RECV else 0)

    # what follows from the waits

    def _is_gone(self, rank: int) -> bool:
        """Return whether a rank will issue nothing more: it has left, and has no second thread."""
        ledger = self._ledgers.get(rank)
        return rank in self._gone and ledger is not None and len(ledger.threads) < 2

    def _in_vain(self, wait: Blocked) -> bool:
        if wait.lost:
            return False
        gone = [self._is_gone(rank) for rank in wait.missing]
        return any(gone) if wait.needs_all else all(gone)

    def _proven_waits(self) -> dict[int, Blocked]:
        proven: dict[int, Blocked] = {
            # a second thread of such a rank could still issue the operation
            rank: wait
            for rank, wait in self._meeting_waits.items()
            if set(self._ledgers[rank].threads) <= {_MAIN}
        }
        for wait in self._waits:
            if wait.certain and len(self._ledgers[wait.rank].threads) == 1:
                proven[wait.rank] = wait
        return proven

    def _stuck(self, waits: Mapping[int, Blocked]) -> dict[int, Blocked]:
        """Return the largest subset of `waits` that only ranks in it, or gone ones, could end."""
        stuck = {rank: wait for rank, wait in waits.items() if wait.missing}
        while True:
            kept = {r: wait for r, wait in stuck.items() if self._is_stuck(wait, stuck)}
            if len(kept) == len(stuck):
                return kept
            stuck = kept

    def _is_stuck(self, wait: Blocked, stuck: Mapping[int, Blocked]) -> bool:
        if wait.certain and self._in_vain(wait):
            return True
        stuck_peers = [rank in stuck or self._is_gone(rank) for rank in wait.missing]
        return any(stuck_peers) if wait.needs_all else all(stuck_peers)

    # descriptions

    def _lines(
        self,
        cycles: list[tuple[int, ...]],
        proven: Mapping[int, Blocked],
        likely_cycles: list[tuple[int, ...]],
        likely: Mapping[int, Blocked],
    ) -> Iterator[str]:
        yield from (mismatch.text for mismatch in self._mismatches)
        for cycle in cycles:
            yield f"deadlock: {_describe_cycle(cycle, proven)}"
        for cycle in likely_cycles:
            yield f"likely deadlock: {_describe_cycle(cycle, likely)}"
        reported = {rank for cycle in (*cycles, *likely_cycles) for rank in cycle}
        mismatched = {part for mismatch in self._mismatches for part in mismatch.key}
        meetings: dict[tuple[str, str, int], list[Wait]] = {}
        for wait in self._waits:
            operation = wait.operation
            if (wait.rank, operation.number) in mismatched:
                continue
            if operation.way in (COLLECTIVE, CREATE):
                meeting = (operation.way, operation.group, operation.sequence)
                meetings.setdefault(meeting, []).append(wait)
            elif wait.rank not in reported:
                yield f"{wait.waiter} waits in {describe(operation)}{self._why(wait)}"
        for waits in meetings.values():
            if not reported.issuperset(wait.rank for wait in waits):
                yield self._absence(waits)

    def _why(self, wait: Wait) -> str:
        operation, peer = wait.operation, wait.operation.peer
        if operation.way == STORE:
            return ""
        if peer is None:
            reasons = [f"rank {rank} {self._doing(rank)}" for rank in wait.missing]
            return "; " + "; ".join(reasons or ["a message for it is on its way"])
        doing = "sending" if operation.way == RECV else "receiving"
        if peer not in self._ledgers or self._ledgers[peer].problem:
            return f"; nothing is known of rank {peer}"
        if not wait.missing or wait.lost:
            return f"; rank {peer} has begun {doing} it, and {self._doing(peer)}"
        if peer in self._gone:
            return f"; rank {peer} {self._gone[peer]} without {doing}{self._other_message(wait)}"
        return f"; rank {peer} {self._doing(peer)}{self._other_message(wait)}"

    def _other_message(self, wait: Wait) -> str:
        """Describe an unmatched message between the same ranks: its tag or group may be wrong."""
        operation, peer = wait.operation, wait.operation.peer
        assert peer is not None
        way = operation.channel.counterpart(wait.rank).way
        for other in self._ledgers[peer].operations:
            if other.way != way or other.peer != wait.rank or not _undone(other):
                continue
            begun = "sent to" if way == SEND else "receives from"
            how = _difference(other, operation)
            return f"; it {begun} rank {wait.rank} with {how} ({place(other)})"
        return ""

    def _absence(self, waits: list[Wait]) -> str:
        first = waits[0].operation
        where = ", ".join(sorted({place(wait.operation) for wait in waits}))
        who = plural_ranks(wait.rank for wait in waits)
        if first.state is State.RUNNING:
            who = f"on the device, {who}"
        wait = f"{who} {'waits' if len(waits) == 1 else 'wait'}"
        absent = sorted({rank for wait in waits for rank in wait.missing})
        what = f"{name(first)} of {group(first)}"
        if not absent:
            return f"{wait} in {what} ({where}); all members have come to it"
        if all(rank in self._gone for rank in absent):
            ways = "; ".join(f"rank {r} {self._gone[r]} without coming to it" for r in absent)
            return f"{wait} in {describe(first)}; {ways}"
        has = "has" if len(absent) == 1 else "have"
        doing = "; ".join(f"rank {rank} {self._doing(rank)}" for rank in absent)
        return f"{plural_ranks(absent)} {has} not come to {what} where {wait} ({where}); {doing}"

    def _doing(self, rank: int) -> str:
        if rank in self._gone:
            return self._gone[rank]
        ledger = self._ledgers.get(rank)
        if ledger is None or ledger.problem:
            return "has left no ledger"
        if ledger.waiting:
            return "is in " + " and in ".join(describe(op) for op in ledger.waiting)
        if running := _first_on_device(ledger):
            return f"has its device in {describe(running[0])}"
        return "is in no distributed operation"


def _needs_each(rank: int, operation: Operation, missing: tuple[int, ...]) -> bool:
    """Return whether the operation surely cannot end on `rank` without each rank in `missing`."""
    if operation.kind in _FROM_ROOT:
        return operation.root in missing
    if operation.kind in _TO_ROOT:
        return operation.root == rank
    return True


def waits_in(ledger: Ledger) -> tuple[Operation, ...]:
    """Return the operations that a rank's threads are blocked in, or else its device."""
    return (*ledger.waiting, *_first_on_device(ledger))


def _first_on_device(ledger: Ledger) -> tuple[Operation, ...]:
    """Return the operation that blocks the device of a rank whose threads are in no operation.

    The rank itself need not be blocked; if it is, it may wait for the device in other code.
    """
    running = [op for op in ledger.operations if op.state is State.RUNNING]
    return () if ledger.waiting else tuple(running[:1])


def _undone(operation: Operation) -> bool:
    return operation.pending or operation.state is State.DROPPED


def _difference(other: Operation, operation: Operation) -> str:
    if other.group != operation.group:
        return f"{group(other)}"
    if other.tag != operation.tag:
        return f"tag {other.tag}"
    return "a handle that was dropped" if other.state is State.DROPPED else "the same tag"


def _cycles(stuck: Mapping[int, Blocked]) -> list[tuple[int, ...]]:
    """Return cycles of ranks that wait for one another; no rank is in two of them."""
    cycles: list[tuple[int, ...]] = []
    seen: set[int] = set()
    for start in stuck:
        path: list[int] = []
        rank: int | None = start
        # follow from each rank to the first stuck rank that it waits for
        while rank is not None and rank not in seen:
            seen.add(rank)
            path.append(rank)
            rank = next((peer for peer in stuck[rank].missing if peer in stuck), None)
        if rank is not None and rank in path:
            cycle = path[path.index(rank) :]
            first = cycle.index(min(cycle))
            cycles.append((*cycle[first:], *cycle[:first]))
    return cycles


def _describe_cycle(cycle: tuple[int, ...], waits: Mapping[int, Blocked]) -> str:
    steps = [
        f"{waits[rank].waiter} waits in {waits[rank].where(following)}"
        for rank, following in zip(cycle, (*cycle[1:], cycle[0]), strict=True)
    ]
    return ",\n          ".join(steps)
