"""Records the owner of each KV token, slot and prefix lock, and where it was taken, for one test.

Its input is events. Single tokens are tracked where that is possible (`events.types.TokenPool`);
otherwise only slots and locks are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_pprank.sglang.events.sites import call_sites
from pytest_pprank.sglang.events.types import (
    BatchPrepared,
    KvAllocated,
    KvCleared,
    KvFreed,
    MetadataAllocated,
    MetadataFreed,
    PrefixLocked,
    PrefixUnlocked,
    SlotAllocated,
    SlotFreed,
    Stack,
    TokenPool,
)

Report = Callable[[str, Stack], None]
_SHOWN = 6


@dataclass
class _Tokens:
    """The tokens of one pool.

    By token: `taken`, the number of the event that allocated it, while it is in use; `last`, the
    number of its last event; `owner`, the request that owns it or did so last.
    """

    taken: dict[int, int]
    last: dict[int, int] = field(default_factory=dict)
    owner: dict[int, str] = field(default_factory=dict)

    def not_held(self, tokens: Sequence[int]) -> list[int]:
        """Return those of the tokens that are not in use."""
        if self.taken.keys() >= set(tokens):
            return []
        return [token for token in tokens if token not in self.taken]


@dataclass(frozen=True)
class Taken:
    """Which request took or freed a slot or a lock, and where."""

    rid: str
    stack: Stack

    @property
    def place(self) -> str:
        """The call sites, in words."""
        return _where(self.stack)

    def __str__(self) -> str:
        return f"{self.rid or 'nobody known'}, taken {self.place}"


@dataclass
class KvBook:
    """The record of one test; `report` is called for tokens that are freed, allocated or used
    wrongly.
    """

    report: Report
    slots: dict[str, Stack] = field(default_factory=dict)
    """By request id, where the request got its slot, while it has one."""
    metadata: dict[int, Taken] = field(default_factory=dict)
    """By metadata slot, which request allocated it, while it is in use."""
    metadata_freed: dict[int, Taken] = field(default_factory=dict)
    """By metadata slot, which request freed it last."""
    _pools: dict[int, _Tokens] = field(default_factory=dict)
    _events: list[Stack] = field(default_factory=lambda: [()])
    """By event number, where it happened; number 0 is before this test."""
    _locks: dict[int, list[Taken]] = field(default_factory=dict)

    def listeners(self) -> dict[str, Callable[[Any], None]]:
        """Return the function to call for each hook point."""
        return {
            "kv_alloc": self._alloc,
            "kv_free": self._free,
            "kv_clear": self._clear,
            "slot_alloc": self._slot_alloc,
            "slot_free": self._slot_free,
            "metadata_alloc": self._metadata_alloc,
            "metadata_free": self._metadata_free,
            "prepare_for_extend": self._own,
            "prepare_for_decode": self._own,
            "lock": self._lock,
            "unlock": self._unlock,
        }

    # tokens

    def check_in_use(self, pool: TokenPool, used: Sequence[int], what: str) -> None:
        """Report tokens that are used for `what` but are not allocated."""
        tokens = self._tokens(pool)
        if wrong := tokens.not_held(used):
            self.report(f"use after free: {what} uses {self._words(tokens, wrong)}", call_sites())

    def held_tokens(self, pool: TokenPool, besides: Collection[int]) -> Iterator[str]:
        """Yield, in words, the tokens in use except those in `besides`."""
        tokens = self._tokens(pool)
        held = sorted(tokens.taken.keys() - set(besides))
        groups = Counter((tokens.owner.get(token, ""), tokens.taken[token]) for token in held)
        for (owner, event), count in groups.most_common(_SHOWN):
            place = _where(self._events[event])
            yield f"{count} KV tokens of {owner or 'nobody known'}: taken {place}"

    def _tokens(self, pool: TokenPool) -> _Tokens:
        known = self._pools.get(pool.key)
        if known is None:
            held = set(range(1, pool.size + 1)).difference(pool.free())
            known = self._pools[pool.key] = _Tokens(dict.fromkeys(held, 0))
        return known

    def _alloc(self, event: KvAllocated) -> None:
        if event.pool is None:
            return
        known = self._pools.get(event.pool.key)
        tokens, taken = self._tokens(event.pool), event.tokens
        if known is not None and not known.taken.keys().isdisjoint(taken):
            twice = [token for token in taken if token in known.taken]
            self.report(f"handed out twice: {self._words(known, twice)}", event.stack)
        number = self._note(event.stack)
        tokens.taken.update(dict.fromkeys(taken, number))
        tokens.last.update(dict.fromkeys(taken, number))
        tokens.owner.update(dict.fromkeys(taken, event.rid))

    def _free(self, event: KvFreed) -> None:
        if event.pool is None:
            return
        tokens = self._tokens(event.pool)
        if wrong := tokens.not_held(event.tokens):
            self.report(f"double free: {self._words(tokens, wrong)}", event.stack)
        for token in event.tokens:
            tokens.taken.pop(token, None)
        tokens.last.update(dict.fromkeys(event.tokens, self._note(event.stack)))

    def _clear(self, event: KvCleared) -> None:
        self._pools.pop(event.pool, None)

    def _own(self, event: BatchPrepared) -> None:
        if event.pool is None or sum(event.lengths) != len(event.tokens):
            return
        owner, start = self._tokens(event.pool).owner, 0
        for rid, length in zip(event.rids, event.lengths, strict=True):
            owner.update(dict.fromkeys(event.tokens[start : start + length], rid))
            start += length

    # slots and locks

    def _slot_alloc(self, event: SlotAllocated) -> None:
        for rid in event.rids:
            self.slots.setdefault(rid, event.stack)

    def _slot_free(self, event: SlotFreed) -> None:
        self.slots.pop(event.rid, None)

    def _metadata_alloc(self, event: MetadataAllocated) -> None:
        if event.slot is not None:
            self.metadata[event.slot] = Taken(event.rid, event.stack)

    def _metadata_free(self, event: MetadataFreed) -> None:
        taken = self.metadata.pop(event.slot, None)
        self.metadata_freed[event.slot] = Taken(taken.rid if taken else "", event.stack)

    def _lock(self, event: PrefixLocked) -> None:
        self._locks.setdefault(event.node, []).append(Taken(event.rid, event.stack))

    def _unlock(self, event: PrefixUnlocked) -> None:
        if takers := self._locks.get(event.node):
            own = [number for number, taken in enumerate(takers) if taken.rid == event.rid]
            takers.pop(own[-1] if own else -1)

    def open_locks(self) -> Iterator[str]:
        """Yield, in words, where prefixes were locked that have not been unlocked."""
        takers = Counter(str(taken) for each in self._locks.values() for taken in each)
        for taken, count in takers.most_common(_SHOWN):
            yield f"{count} locks of prefixes: of {taken}"

    # in words

    def _note(self, stack: Stack) -> int:
        self._events.append(stack)
        return len(self._events) - 1

    def _words(self, pool: _Tokens, tokens: Sequence[int]) -> str:
        first = tokens[0]
        shown = ", ".join(map(str, tokens[:_SHOWN])) + (", ..." if len(tokens) > _SHOWN else "")
        when = _where(self._events[pool.last.get(first, 0)])
        owner = pool.owner.get(first) or "nobody known"
        return f"KV tokens {shown}, last of {owner}, taken or given back before {when}"


def _where(stack: Stack) -> str:
    return "at " + " < ".join(map(str, stack[:4])) if stack else "before this test"
