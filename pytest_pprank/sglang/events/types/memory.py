"""Events of memory: KV tokens, request slots, metadata slots, locked prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_pprank.sglang.events.types.base import Event, Layer, Look, Stack


@dataclass(frozen=True)
class TokenPool:
    """KV tokens that can be followed one by one: pages of one token, free to look at.

    `key` tells it from other pools. Its tokens are 1 to `size`; 0 is for padding. `free`: which of
    them nobody holds now.
    """

    key: int
    size: int
    free: Look[Sequence[int]]


class KvReader(Protocol):
    """Reads keys and values of a request on this stage, by the request slot that it has now."""

    @property
    def first_layer(self) -> int:
        """The first layer of the model that is on this stage."""

    @property
    def bytes_per_token(self) -> int:
        """What one token takes, in all layers of this stage."""

    def read(self, slot: int, tokens: int) -> tuple[Layer, ...]:
        """Copy the first `tokens` of the request that has this slot."""


@dataclass(frozen=True)
class KvAllocated(Event):
    """KV tokens have been taken: none where there was no room, or where they are not followed.

    `rid`: who they are for, empty where nobody is known yet, as in a batch that is being prepared.
    """

    pool: TokenPool | None
    tokens: Sequence[int] = ()
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class KvFreed(Event):
    """KV tokens are about to be given back.

    `pool` is None where they are not followed, and where SGLang only collects them, to give them
    back together.
    """

    pool: TokenPool | None
    tokens: Sequence[int] = ()
    stack: Stack = ()


@dataclass(frozen=True)
class KvCleared(Event):
    """An allocator has forgotten who holds what; `pool` is the `TokenPool.key` that it had."""

    pool: int


@dataclass(frozen=True)
class SlotAllocated(Event):
    """Requests have got their slots; none where there was no room."""

    rids: tuple[str, ...]
    stack: Stack = ()


@dataclass(frozen=True)
class SlotFreed(Event):
    """A request is about to give its slot back.

    `slot` is None for one that has none. `tokens`: how many of its tokens have KV.
    """

    rid: str
    slot: int | None = None
    tokens: int = 0


@dataclass(frozen=True)
class MetadataAllocated(Event):
    """A metadata slot of a KV transfer has been taken; None where all were."""

    slot: int | None
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class MetadataFreed(Event):
    """A metadata slot is about to be given back."""

    slot: int
    stack: Stack = ()


@dataclass(frozen=True)
class PrefixLocked(Event):
    """A prefix in the tree cache has been locked, by this request as far as it is known."""

    node: int
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class PrefixUnlocked(Event):
    """A prefix in the tree cache has been unlocked."""

    node: int
    rid: str = ""
