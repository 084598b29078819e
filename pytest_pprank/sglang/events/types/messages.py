"""Events of messages and KV transfers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from pytest_pprank.sglang.events.types.base import Event


@dataclass(frozen=True)
class KvSent(Event):
    """KV is about to be sent to decode. `sender` is the same for all chunks of a request."""

    sender: Hashable
    tokens: int
    room: int = 0


@dataclass(frozen=True)
class KvQueued(Event):
    """A chunk of KV is about to be queued for a thread that sends it.

    `chunk` identifies it until it is sent. `again`: that thread itself queues it, to send it later.
    """

    chunk: int
    again: bool = False


@dataclass(frozen=True)
class KvRead(Event):
    """A thread of the transfer engine is about to read memory of this rank.

    `spans`: the memory, as (address, bytes). `chunk`: the chunk that it sends (see KvQueued); None
    if unknown.
    """

    spans: tuple[tuple[int, int], ...]
    chunk: int | None = None


@dataclass(frozen=True)
class KvTarget(Event):
    """Decode is about to announce where its KV may be written; writes may begin at any moment.

    `spans`: the memory of this rank, as (address, bytes).
    """

    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TransferPolled(Event):
    """A KV transfer has been polled; `status` is a name of SGLang's KVPoll."""

    room: int
    status: str


@dataclass(frozen=True)
class Message(Event):
    """A message between two ranks. `peer` is a global rank."""

    group: str
    peer: int | None
    tag: int
    nbytes: int
    dtype: str
    shapes: tuple[tuple[int, ...], ...]


class MessageSent(Message):
    """The send of a message has been issued."""


class MessageReceived(Message):
    """The receive of a message has been issued."""
