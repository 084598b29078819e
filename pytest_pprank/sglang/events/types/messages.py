"""Events of messages and KV transfers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from pytest_pprank.sglang.events.types.base import Event


@dataclass(frozen=True)
class KvSent(Event):
    """KV is about to be sent to the decode side. `sender` is one for all chunks of a request."""

    sender: Hashable
    tokens: int
    room: int = 0


@dataclass(frozen=True)
class KvQueued(Event):
    """A chunk of KV is about to be handed to a thread that sends it. `chunk` names it until it is
    sent; `again`: by that thread itself, which puts it off.
    """

    chunk: int
    again: bool = False


@dataclass(frozen=True)
class KvRead(Event):
    """A thread of the transfer engine is about to read memory of this rank: `spans` of it, as
    (address, bytes). `chunk`: which one it sends (see KvQueued); None where that is not known.
    """

    spans: tuple[tuple[int, int], ...]
    chunk: int | None = None


@dataclass(frozen=True)
class KvTarget(Event):
    """Decode is about to say where its KV may be written, at any moment from here on: `spans` of
    memory of this rank, as (address, bytes).
    """

    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TransferPolled(Event):
    """A KV transfer has been asked how it goes; `status` in SGLang's own words (KVPoll)."""

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
    """Its send has been issued."""


class MessageReceived(Message):
    """Its receipt has been issued."""
