"""Events of memory: KV tokens, request slots, metadata slots, locked prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_pprank.sglang.events.types.base import Event, Layer, Look, Stack


@dataclass(frozen=True)
class TokenPool:
    """KV tokens that can be tracked one by one: pages of one token, readable without a device copy.

    `key` identifies the pool. Its tokens are 1 to `size`; token 0 is for padding. `free` returns
    the tokens that are free now.
    """

    key: int
    size: int
    free: Look[Sequence[int]]


class KvReader(Protocol):
    """Reads keys and values of a request on this stage, by the request's current slot."""

    @property
    def first_layer(self) -> int:
        """The first layer of the model that is on this stage."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token, in all layers of this stage."""

    def read(self, slot: int, tokens: int) -> tuple[Layer, ...]:
        """Copy the KV of the first `tokens` tokens of the request in this slot."""


@dataclass(frozen=True)
class KvAllocated(Event):
    """KV tokens have been allocated; empty if there was no room, or if they are not tracked.

    `rid`: the request they are for; empty if it is not known yet, as while a batch is prepared.
    """

    pool: TokenPool | None
    tokens: Sequence[int] = ()
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class KvFreed(Event):
    """KV tokens are about to be freed.

    `pool`: None if tokens are not tracked, and if SGLang only collects them to free them together
    later.
    """

    pool: TokenPool | None
    tokens: Sequence[int] = ()
    stack: Stack = ()


@dataclass(frozen=True)
class KvCleared(Event):
    """An allocator has been cleared; `pool` is the `TokenPool.key` that it had."""

    pool: int


@dataclass(frozen=True)
class SlotAllocated(Event):
    """Request slots have been allocated; empty if there was no room."""

    rids: tuple[str, ...]
    stack: Stack = ()


@dataclass(frozen=True)
class SlotFreed(Event):
    """A request is about to free its slot.

    `slot`: None if it has none. `tokens`: how many of its tokens have KV.
    """

    rid: str
    slot: int | None = None
    tokens: int = 0


@dataclass(frozen=True)
class MetadataAllocated(Event):
    """A metadata slot of a KV transfer has been allocated; None if there was none left."""

    slot: int | None
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class MetadataFreed(Event):
    """A metadata slot is about to be freed."""

    slot: int
    stack: Stack = ()


@dataclass(frozen=True)
class PrefixLocked(Event):
    """A prefix in the tree cache has been locked; `rid`: for which request, if known."""

    node: int
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class PrefixUnlocked(Event):
    """A prefix in the tree cache has been unlocked."""

    node: int
    rid: str = ""
