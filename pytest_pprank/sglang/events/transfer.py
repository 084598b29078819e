"""Decodes events of KV transfers and of messages between ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from pytest_pprank.sglang.compat.disagg import chunk_under_way, kv_buffers, status_name
from pytest_pprank.sglang.compat.requests import room_of
from pytest_pprank.sglang.events.types import (
    KvQueued,
    KvRead,
    KvSent,
    KvTarget,
    Message,
    MessageReceived,
    MessageSent,
    TransferPolled,
)

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.hook_points import HookCall

M = TypeVar("M", bound=Message)


def kv_sent(call: HookCall) -> KvSent:
    """Decode the sending of one chunk of a prompt."""
    sender = call.args[0]
    return KvSent(sender, len(call.argument(1, "kv_indices")), room_of(sender))


def kv_queued(call: HookCall) -> KvQueued:
    """Decode the queueing of one chunk of a prompt."""
    chunk = call.args[1]
    return KvQueued(id(chunk), again=chunk_under_way() is chunk)


def kv_read(call: HookCall) -> KvRead:
    """Decode one call of the transfer engine, which may name many buffers."""
    addresses, lengths = call.argument(2, "buffers"), call.argument(4, "lengths")
    if addresses is None or isinstance(addresses, int):  # transfer_sync has one of each
        addresses = [call.argument(2, "buffer")]
        lengths = [call.argument(4, "length")]
    spans = zip(map(int, addresses), map(int, lengths), strict=True)
    chunk = chunk_under_way()
    return KvRead(tuple(span for span in spans if span[1]), None if chunk is None else id(chunk))


def kv_target(call: HookCall) -> KvTarget:
    """Decode the target pages of one request, in all layers of this stage."""
    pages = sorted(map(int, call.argument(1, "kv_indices")))
    return KvTarget(
        tuple(
            (start + first * nbytes, (last - first + 1) * nbytes)
            for start, nbytes in kv_buffers(call.args[0])
            for first, last in _runs(pages)
        )
    )


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last number of each run of consecutive numbers; `numbers` is sorted."""
    first = last = None
    for number in numbers:
        if last is None or number != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def transfer_polled(call: HookCall) -> TransferPolled:
    """Decode a poll of a sender or a receiver."""
    return TransferPolled(room_of(call.args[0]), status_name(call.result))


def message_sent(call: HookCall) -> MessageSent:
    """Decode a send that the ledger has recorded."""
    return _message(MessageSent, call)


def message_received(call: HookCall) -> MessageReceived:
    """Decode a receive that the ledger has recorded."""
    return _message(MessageReceived, call)


def _message(kind: type[M], call: HookCall) -> M:
    made = call.operation
    assert made is not None
    return kind(made.label, made.peer, made.tag, made.nbytes, made.dtype, made.shapes)
