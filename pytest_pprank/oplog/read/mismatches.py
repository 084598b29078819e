"""Finds operations that ranks have paired although they do not match."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pytest_pprank.oplog.file import (
    COLLECTIVE,
    RECV,
    SEND,
    Ledger,
    Operation,
    State,
)
from pytest_pprank.oplog.read.text import facts, group, name

_UNEVEN = ("all_to_all", "monitored_barrier")
"""Kinds of operations in which ranks may send different amounts."""


@dataclass(frozen=True)
class Mismatch:
    """Paired operations of several ranks; `key` has (rank, operation number) of each."""

    text: str
    key: frozenset[tuple[int, int]]


def find_mismatches(ledgers: Mapping[int, Ledger]) -> list[Mismatch]:
    """Return mismatches among operations that are pending, or have failed in this test."""
    return [*_collectives(ledgers), *_messages(ledgers)]


def _collectives(ledgers: Mapping[int, Ledger]) -> Iterator[Mismatch]:
    meetings: dict[tuple[str, int], dict[int, Operation]] = {}
    for rank, ledger in ledgers.items():
        for operation in ledger.operations:
            if operation.way == COLLECTIVE and operation.sequence:
                meeting = meetings.setdefault((operation.group, operation.sequence), {})
                meeting[rank] = operation
    for meeting in meetings.values():
        if _differ(meeting.values()) and any(
            _relevant(op, ledgers[r]) for r, op in meeting.items()
        ):
            text = ", ".join(
                f"rank {r} {name(op)} ({_facts_without_group(op)})" for r, op in meeting.items()
            )
            of = group(next(iter(meeting.values())))
            yield Mismatch(f"mismatch in {of}: {text}", _key(meeting))


def _messages(ledgers: Mapping[int, Ledger]) -> Iterator[Mismatch]:
    """Yield messages whose receiver's buffer has another size: an error with gloo and NCCL."""
    sends = {
        (rank, op.channel, op.sequence): op
        for rank, ledger in ledgers.items()
        for op in ledger.operations
        if op.way == SEND and op.sequence
    }
    for rank, ledger in ledgers.items():
        for recv in ledger.operations:
            if recv.way != RECV or recv.peer is None or not recv.sequence:
                continue
            sent = sends.get((recv.peer, recv.channel.counterpart(rank), recv.sequence))
            if sent is None or sent.nbytes == recv.nbytes:
                continue
            pair = {recv.peer: sent, rank: recv}
            if any(_relevant(operation, ledgers[r]) for r, operation in pair.items()):
                text = ", ".join(f"rank {r} {name(op)} ({facts(op)})" for r, op in pair.items())
                yield Mismatch(f"mismatch: {text}", _key(pair))


def _differ(operations: Collection[Operation]) -> bool:
    # an option the caller has left out is unknown and cannot differ
    roots = {operation.root for operation in operations} - {None}
    details = {operation.detail for operation in operations} - {""}
    amounts = {
        (op.kind, *(() if op.kind.startswith(_UNEVEN) else (op.dtype, op.tensors, op.nbytes)))
        for op in operations
    }
    return max(len(roots), len(details), len(amounts)) > 1


def _relevant(operation: Operation, ledger: Ledger) -> bool:
    """Return whether it may have caused a failure of this test: finished operations did match."""
    failed = operation.state is State.FAILED and operation.serial == ledger.serial
    return operation.pending or failed


def _facts_without_group(operation: Operation) -> str:
    return facts(operation).rpartition(f", {group(operation)}")[0] or facts(operation)


def _key(operations: Mapping[int, Operation]) -> frozenset[tuple[int, int]]:
    return frozenset((rank, operation.number) for rank, operation in operations.items())
