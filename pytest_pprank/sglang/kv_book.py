"""Who took which KV token, slot and prefix lock, and where: a record for one test.

It listens at SGLang's seams. Tokens are followed where an allocator keeps its free ones one by one
(pages of one token), where looking at them costs nothing; else only slots and locks are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_pprank.devices.look import costs_nothing, host_values
from pytest_pprank.devices.sim import looking
from pytest_pprank.sglang.taps import Passage, call_sites, request_in_hand
from pytest_pprank.wire.ledger_file import Site

Stack = tuple[Site, ...]
Report = Callable[[str, Stack], None]
_SHOWN = 6
_FOLLOWED = ("TokenToKVPoolAllocator", "PagedTokenToKVPoolAllocator")


@dataclass
class _Pool:
    """The tokens of one allocator. By token: number of the event that took it (0: it is free), of
    the last event at all, and of the request that holds it (0: none).
    """

    taken: Any
    last: Any
    owner: Any


@dataclass(frozen=True)
class Taken:
    """Who did something with a slot or a lock, and where."""

    rid: str
    stack: Stack

    @property
    def place(self) -> str:
        """Where, in words."""
        return _where(self.stack)

    def __str__(self) -> str:
        return f"{self.rid or 'nobody known'}, taken {self.place}"


@dataclass
class KvBook:
    """`report` is told of tokens that are given back, handed out or used wrongly."""

    report: Report
    slots: dict[str, Stack] = field(default_factory=dict)
    """Where each request got its slot, by its id, while it has one."""
    metadata: dict[int, Taken] = field(default_factory=dict)
    """By metadata slot of KV transfers who has taken it last, while it is held."""
    metadata_freed: dict[int, Taken] = field(default_factory=dict)
    """By metadata slot who has given it back last."""
    _pools: dict[int, _Pool] = field(default_factory=dict)
    _events: list[Stack] = field(default_factory=lambda: [()])
    _rids: dict[str, int] = field(default_factory=dict)
    _locks: dict[int, list[Taken]] = field(default_factory=dict)

    def listeners(self) -> dict[str, Callable[[Passage], None]]:
        """Return what must be called at which seam."""
        return {
            "kv_alloc": self._alloc,
            "kv_free": self._free,
            "kv_clear": self._clear,
            "slot_alloc": self._slot_alloc,
            "slot_free": self._slot_free,
            "metadata_alloc": self._metadata_alloc,
            "metadata_free": self._metadata_free,
            "prepare_for_extend": self._extend,
            "prepare_for_decode": self._decode,
            "lock": self._lock,
            "unlock": self._unlock,
        }

    # tokens

    def follows(self, allocator: Any) -> bool:
        """Whether the tokens of this allocator can be followed."""
        plain = type(allocator).__name__ in _FOLLOWED and allocator.page_size == 1
        pages = getattr(allocator, "free_pages", None)
        return plain and pages is not None and costs_nothing(pages.device)

    def check_in_use(self, allocator: Any, tokens: Any, what: str) -> None:
        """Report tokens that nobody holds, although they are used for `what`."""
        if not self.follows(allocator):
            return
        pool, used = self._pool(allocator), _numbers(tokens)
        wrong = used[pool.taken[used] == 0]
        if len(wrong):
            self.report(f"use after free: {what} uses {self._words(pool, wrong)}", call_sites())

    def held_tokens(self, allocator: Any, besides: Any) -> Iterator[str]:
        """Yield, in words, the tokens that are held, but for those in `besides` (host tensor)."""
        if not self.follows(allocator):
            return
        pool = self._pool(allocator)
        held = np.flatnonzero(pool.taken)
        held = held[~np.isin(held, besides.numpy())]
        groups = Counter(zip(pool.owner[held].tolist(), pool.taken[held].tolist(), strict=True))
        for (owner, event), count in groups.most_common(_SHOWN):
            yield f"{count} KV tokens of {self._name(owner)}: taken {_where(self._events[event])}"

    def _pool(self, allocator: Any) -> _Pool:
        pool = self._pools.get(id(allocator))
        if pool is None:
            size = int(allocator.size) + 1
            taken: Any = np.ones(size, dtype=np.int64)
            taken[0] = 0  # for padding: never handed out
            taken[_free_tokens(allocator)] = 0
            self._note(())
            empty: Any = np.zeros(size, dtype=np.int64)
            pool = self._pools[id(allocator)] = _Pool(taken, empty, empty.copy())
        return pool

    def _alloc(self, passage: Passage) -> None:
        allocator, tokens = passage.args[0], passage.result
        if tokens is None or not self.follows(allocator):
            return
        known = id(allocator) in self._pools
        pool, taken, stack = self._pool(allocator), _numbers(tokens), call_sites()
        twice = taken[pool.taken[taken] > 0] if known else []
        if len(twice):
            self.report(f"handed out twice: {self._words(pool, twice)}", stack)
        event = self._note(stack)
        pool.taken[taken] = pool.last[taken] = event
        # a batch names its requests when it has been prepared; others take for one at a time
        in_batch = any(site.function.startswith("prepare_for") for site in stack)
        pool.owner[taken] = 0 if in_batch else self._number(request_in_hand())

    def _free(self, passage: Passage) -> None:
        allocator = passage.args[0]
        if _in_free_group(allocator) or not self.follows(allocator):
            return  # SGLang will free them together, in one call
        pool, stack = self._pool(allocator), call_sites()
        freed = np.concatenate([_numbers(tensor) for tensor in passage.arguments])
        wrong = freed[pool.taken[freed] == 0]
        if len(wrong):
            self.report(f"double free: {self._words(pool, wrong)}", stack)
        pool.taken[freed] = 0
        pool.last[freed] = self._note(stack)

    def _clear(self, passage: Passage) -> None:
        self._pools.pop(id(passage.args[0]), None)

    def _extend(self, passage: Passage) -> None:
        batch = passage.args[0]
        self._own(batch, [int(length) for length in batch.extend_lens])

    def _decode(self, passage: Passage) -> None:
        batch = passage.args[0]
        self._own(batch, [1] * len(batch.reqs))

    def _own(self, batch: Any, lengths: Sequence[int]) -> None:
        allocator, tokens = batch.token_to_kv_pool_allocator, batch.out_cache_loc
        if tokens is None or not self.follows(allocator) or sum(lengths) != len(tokens):
            return
        numbers = [self._number(req.rid) for req in batch.reqs]
        self._pool(allocator).owner[_numbers(tokens)] = np.repeat(numbers, lengths)

    def _number(self, rid: str) -> int:
        return self._rids.setdefault(rid, len(self._rids) + 1) if rid else 0

    # slots and locks

    def _slot_alloc(self, passage: Passage) -> None:
        stack = call_sites()
        for req in passage.argument(1, "reqs") or () if passage.result is not None else ():
            self.slots.setdefault(req.rid, stack)

    def _slot_free(self, passage: Passage) -> None:
        self.slots.pop(passage.argument(1, "req").rid, None)

    def _metadata_alloc(self, passage: Passage) -> None:
        if passage.result is not None:
            self.metadata[int(passage.result)] = Taken(request_in_hand(), call_sites())

    def _metadata_free(self, passage: Passage) -> None:
        slot = int(passage.argument(1, "free_index"))
        taken = self.metadata.pop(slot, None)
        self.metadata_freed[slot] = Taken(taken.rid if taken else "", call_sites())

    def _lock(self, passage: Passage) -> None:
        self._locks.setdefault(_node(passage), []).append(Taken(request_in_hand(), call_sites()))

    def _unlock(self, passage: Passage) -> None:
        takers, rid = self._locks.get(_node(passage)), request_in_hand()
        if takers:
            own = [number for number, taken in enumerate(takers) if taken.rid == rid]
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

    def _name(self, owner: int) -> str:
        return next((rid for rid, number in self._rids.items() if number == owner), "nobody known")

    def _words(self, pool: _Pool, tokens: Any) -> str:
        first = int(tokens[0])
        shown = ", ".join(map(str, tokens[:_SHOWN])) + (", ..." if len(tokens) > _SHOWN else "")
        when = _where(self._events[int(pool.last[first])])
        owner = self._name(int(pool.owner[first]))
        return f"KV tokens {shown}, last of {owner}, taken or given back before {when}"


def _in_free_group(allocator: Any) -> bool:
    at_once = getattr(allocator, "is_not_in_free_group", None)  # up to SGLang 0.5.18
    if at_once is not None:
        return not at_once
    return getattr(allocator, "free_group", None) is not None


def _free_tokens(allocator: Any) -> Any:
    if hasattr(allocator, "get_all_free_pages"):
        with looking():
            return _numbers(allocator.get_all_free_pages())
    return np.concatenate([_numbers(allocator.free_pages), _numbers(allocator.release_pages)])


def _numbers(tokens: Any) -> Any:
    return host_values(tokens).numpy()


def _node(passage: Passage) -> int:
    node = passage.argument(1, "node")
    return node if isinstance(node, int) else id(node)


def _where(stack: Stack) -> str:
    return "at " + " < ".join(map(str, stack[:4])) if stack else "before this test"


_current: KvBook | None = None


def open_book(book: KvBook | None) -> None:
    """Make `book` the one that failures are explained from; None: there is none."""
    global _current
    _current = book


def current_book() -> KvBook | None:
    """Return the book of the running test, None where nobody keeps one."""
    return _current
