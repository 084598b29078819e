"""KV transfers, and messages between ranks, as events."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pytest_pprank.sglang.compat.disagg import status_word
from pytest_pprank.sglang.compat.requests import room_of
from pytest_pprank.sglang.events.types import (
    KvSent,
    Message,
    MessageReceived,
    MessageSent,
    TransferPolled,
)

if TYPE_CHECKING:
    from pytest_pprank.sglang.taps import Passage

M = TypeVar("M", bound=Message)


def kv_sent(passage: Passage) -> KvSent:
    """Of one chunk of a prompt."""
    sender = passage.args[0]
    return KvSent(sender, len(passage.argument(1, "kv_indices")), room_of(sender))


def transfer_polled(passage: Passage) -> TransferPolled:
    """Of a sender or a receiver."""
    return TransferPolled(room_of(passage.args[0]), status_word(passage.result))


def message_sent(passage: Passage) -> MessageSent:
    """Of a send that the ledger has noted."""
    return _message(MessageSent, passage)


def message_received(passage: Passage) -> MessageReceived:
    """Of a receipt that the ledger has noted."""
    return _message(MessageReceived, passage)


def _message(kind: type[M], passage: Passage) -> M:
    told = passage.operation
    assert told is not None
    return kind(told.label, told.peer, told.tag, told.nbytes, told.dtype, told.shapes)
