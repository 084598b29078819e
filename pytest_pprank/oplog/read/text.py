"""Descriptions of torch.distributed operations for users."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_pprank.oplog.file import COLLECTIVE, RECV, SEND, Ledger, Operation, State
from pytest_pprank.words import plural_ranks

_SHOWN_COMPLETED = 8
_SHOWN_PENDING = 16
_SHOWN_SHAPES = 3
_STATES = {
    State.ISSUED: "issued, not waited for",
    State.WAITING: "waiting",
    State.QUEUED: "queued on the device",
    State.RUNNING: "queued on the device, not done",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.DROPPED: "its handle was dropped",
}


def name(operation: Operation) -> str:
    """Return the kind of an operation and its peer: ``recv from rank 0``, ``all_reduce #3``."""
    if operation.way == SEND:
        return f"{operation.kind} to rank {operation.peer}"
    if operation.way == RECV:
        whom = "any rank" if operation.peer is None else f"rank {operation.peer}"
        return f"{operation.kind} from {whom}"
    if operation.way == COLLECTIVE:
        return f"{operation.kind} #{operation.turn}"
    return operation.kind


def tensors(operation: Operation) -> str:
    """Return ``float32[4,8]``; empty for an operation without tensors."""
    if not operation.tensors:
        return ""
    shown = operation.shapes[:_SHOWN_SHAPES]
    texts = [f"{operation.dtype}[{','.join(map(str, shape))}]" for shape in shown]
    if len(set(texts)) == 1 and operation.tensors == len(operation.shapes) > 1:
        return f"{operation.tensors} x {texts[0]}"
    more = operation.tensors - len(shown)
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def place(operation: Operation) -> str:
    """Return the line of code, and the plumbing between it and torch if there is any."""
    via = f" via {operation.via}" if operation.via is not None else ""
    return f"{operation.site}{via}" if operation.site.file else "called from C++"


def group(operation: Operation) -> str:
    """Return the group in words, with its members unless it is the default group."""
    if not operation.ranks or operation.label == "default group":
        return operation.label
    return f"{operation.label} of {plural_ranks(operation.ranks)}"


def facts(operation: Operation) -> str:
    """Return everything known of an operation besides its name."""
    parts = [
        place(operation),
        f"tag {operation.tag}" if operation.way in (SEND, RECV) and operation.tag else "",
        f"root {operation.root}" if operation.root is not None else "",
        operation.detail,
        tensors(operation),
        f"{operation.nbytes} B" if operation.nbytes else "",
        group(operation),
    ]
    return ", ".join(part for part in parts if part)


def describe(operation: Operation) -> str:
    """Return ``recv from rank 0 (a.py:3 in f, tag 3, float32[4,8], 128 B, default group)``."""
    return f"{name(operation)} ({facts(operation)})"


def summary(ledger: Ledger) -> str:
    """Return the last finished and the pending operations of a rank, one per line.

    At most `_SHOWN_COMPLETED` and `_SHOWN_PENDING` of them.
    """
    if ledger.problem:
        return ledger.problem
    pending = ledger.pending
    done = [op for op in ledger.operations if not op.pending and op.serial == ledger.serial]
    lines = [
        *_section("last finished", done[-_SHOWN_COMPLETED:], len(done), ledger),
        *_section("pending", pending[:_SHOWN_PENDING], len(pending), ledger),
    ]
    if ledger.unrecorded:
        why = ledger.fault or "too many were pending at once"
        lines.append(f"{ledger.unrecorded} operations are missing here: {why}")
    if ledger.torn:
        lines.append(f"{ledger.torn} records are damaged")
    return "\n".join(lines)


def _section(title: str, shown: Iterable[Operation], total: int, ledger: Ledger) -> list[str]:
    lines = [f"  {_line(operation, ledger)}" for operation in shown]
    if not lines:
        return [f"{title}: none"]
    more = f" ({len(lines)} of {total})" if len(lines) < total else ""
    return [f"{title}{more}:", *lines]


def _line(operation: Operation, ledger: Ledger) -> str:
    text = f"{describe(operation)}: {_STATES[operation.state]}"
    if operation.error:
        text += f": {operation.error}"
    if len(ledger.threads) > 1:
        text += f", thread {operation.thread}"
    if operation.serial != ledger.serial:
        text += ", left over from an earlier test"
    return text
