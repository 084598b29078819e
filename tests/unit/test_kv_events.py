"""What the sanitizer kv finds in made-up events, and what its book says about owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_pprank.checks.kv import Kv
from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events.types import (
    BatchPrepared,
    ForwardContents,
    ForwardEntry,
    KvAllocated,
    KvCleared,
    KvFreed,
    KvSent,
    Layer,
    MetadataAllocated,
    MetadataFreed,
    PrefixLocked,
    PrefixUnlocked,
    Quiescent,
    SentPrompt,
    SlotAllocated,
    SlotFreed,
    TokenPool,
)
from pytest_pprank.sglang.model.kv_values import Kept
from pytest_pprank.sglang.stage.stage import this_stage

TAKEN = (Site("a/scheduler.py", 7, "take"),)
GIVEN = (Site("a/scheduler.py", 9, "give"),)


def _pool(*in_use: int) -> TokenPool:
    """Return a pool of 8 tokens of which these are in use, as far as their allocator says."""
    return TokenPool(1, 8, lambda: [token for token in range(1, 9) if token not in in_use])


def _take(watch: Any, *tokens: int, rid: str = "a") -> None:
    watch.emit("kv_alloc", KvAllocated(_pool(*tokens), tokens, rid, TAKEN))


def _give(watch: Any, *tokens: int, in_use: Sequence[int] = ()) -> None:
    watch.emit("kv_free", KvFreed(_pool(*(in_use or tokens)), tokens, GIVEN))


@pytest.fixture
def watch(watched: Any) -> Any:
    return watched(Kv)


class TestTokens:
    def test_taken_and_given_back(self, watch: Any) -> None:
        for _ in range(2):
            _take(watch, 1, 2)
            _give(watch, 1, 2)
        assert watch.lines == []

    def test_handed_out_twice(self, watch: Any) -> None:
        _take(watch, 1, 2)
        _take(watch, 2, 3, rid="b")
        assert watch.lines == [
            "handed out twice: KV tokens 2, last of a, taken or given back before at "
            "scheduler.py:7 in take"
        ]
        assert watch.found[0].stack == tuple(map(str, TAKEN))

    def test_given_back_twice(self, watch: Any) -> None:
        _take(watch, 1, 2, 3)
        _give(watch, 1, 2, 3)
        _give(watch, 2, 3)
        assert watch.lines == [
            "double free: KV tokens 2, 3, last of a, taken or given back before at "
            "scheduler.py:9 in give"
        ]

    def test_held_since_before_the_test(self, watch: Any) -> None:
        _give(watch, 1, in_use=(1, 2))
        assert watch.lines == []
        _give(watch, 5, in_use=(2,))
        assert watch.lines == [
            "double free: KV tokens 5, last of nobody known, taken or given back before before "
            "this test"
        ]

    def test_not_followed(self, watch: Any) -> None:
        for _ in range(2):
            watch.emit("kv_alloc", KvAllocated(None))
            watch.emit("kv_free", KvFreed(None))
        assert watch.lines == []

    def test_allocator_that_has_forgotten_all(self, watch: Any) -> None:
        _take(watch, 1)
        watch.emit("kv_clear", KvCleared(1))
        _take(watch, 1)
        assert watch.lines == []

    def test_who_holds_tokens(self, watch: Any) -> None:
        _take(watch, 1, 2, 3, rid="")
        watch.emit("prepare_for_extend", BatchPrepared(("a", "b"), _pool(), (2, 1), (1, 2, 3)))
        _take(watch, 4, rid="")
        watch.emit("prepare_for_decode", BatchPrepared(("c",), _pool(), (1,), (4,)))
        # ignored: lengths that do not fit, and a batch whose tokens are not tracked
        watch.emit("prepare_for_decode", BatchPrepared(("d",), _pool(), (2,), (4,)))
        watch.emit("prepare_for_decode", BatchPrepared(("d",)))
        book = this_stage().book
        assert book is not None
        assert list(book.held_tokens(_pool(), [2])) == [
            f"1 KV tokens of {rid}: taken at scheduler.py:7 in take" for rid in "abc"
        ]


def _forward(*tokens: int, pool: TokenPool | None = None, **changes: Any) -> ForwardEntry:
    contents = ForwardContents(None, None, (len(tokens),), tokens[-1:], (tokens,))
    return ForwardEntry("decode", pool=pool or _pool(), contents=contents, **changes)


class TestForward:
    def test_tokens_that_somebody_holds(self, watch: Any) -> None:
        _take(watch, 1, 2)
        watch.emit("forward", _forward(1, 2, rids=("a",)))
        assert watch.lines == []

    def test_use_after_free(self, watch: Any) -> None:
        _take(watch, 1, 2, 3)
        _give(watch, 1, 3)
        watch.emit("forward", _forward(1, 2, 3, rids=("a",)))
        watch.emit("forward", _forward(1, 2))
        last = "last of a, taken or given back before at scheduler.py:9 in give"
        assert watch.lines == [
            f"use after free: the forward's output uses KV tokens 3, {last}",
            f"use after free: the KV of a uses KV tokens 1, 3, {last}",
            f"use after free: the KV of ? uses KV tokens 1, {last}",
        ]

    def test_what_cannot_be_looked_at(self, watch: Any) -> None:
        watch.emit("forward", ForwardEntry("decode", pool=_pool()))
        watch.emit("forward", ForwardEntry("decode", contents=_forward(1, 2).contents))
        assert watch.lines == []


class TestQuiescent:
    @pytest.mark.parametrize("problems", [[], ["KV pool: 3 of 8", "held by a"]])
    def test_balance(self, watch: Any, problems: list[str]) -> None:
        watch.sanitizer.quiescent(Quiescent(lambda: problems, list, list))
        text = "not balanced, with all requests done:\nKV pool: 3 of 8\nheld by a"
        assert [finding.text for finding in watch.found] == ([text] if problems else [])

    @pytest.mark.parametrize("tokens", [5, 7])
    def test_kv_that_was_sent(self, watch: Any, tokens: int) -> None:
        for chunk in (4, 1):
            watch.emit("transfer_send", KvSent("sender of a", chunk))
        prompts = [SentPrompt("a", "sender of a", tokens), SentPrompt("b", "another", 3)]
        watch.sanitizer.quiescent(Quiescent(list, lambda: prompts, list))
        assert watch.lines == (
            ["KV of 5 tokens was sent for a, whose prompt has 7"] if tokens == 7 else []
        )


class TestBook:
    def test_slots(self, watch: Any) -> None:
        book = this_stage().book
        assert book is not None
        watch.emit("slot_alloc", SlotAllocated(("a", "b"), TAKEN))
        watch.emit("slot_alloc", SlotAllocated(("a",), GIVEN))
        watch.emit("slot_free", SlotFreed("b"))
        assert book.slots == {"a": TAKEN}
        watch.emit("metadata_alloc", MetadataAllocated(None))
        watch.emit("metadata_alloc", MetadataAllocated(0, "a", TAKEN))
        watch.emit("metadata_alloc", MetadataAllocated(1, "b", TAKEN))
        watch.emit("metadata_free", MetadataFreed(1, GIVEN))
        watch.emit("metadata_free", MetadataFreed(2, GIVEN))
        assert {slot: str(taken) for slot, taken in book.metadata.items()} == {
            0: "a, taken at scheduler.py:7 in take"
        }
        assert {slot: (freed.rid, freed.place) for slot, freed in book.metadata_freed.items()} == {
            1: ("b", "at scheduler.py:9 in give"),
            2: ("", "at scheduler.py:9 in give"),
        }

    def test_locks(self, watch: Any) -> None:
        book = this_stage().book
        assert book is not None
        for rid in ("a", "b", "a"):
            watch.emit("lock", PrefixLocked(5, rid, TAKEN))
        watch.emit("unlock", PrefixUnlocked(5, "b"))
        watch.emit("unlock", PrefixUnlocked(6, "b"))
        assert list(book.open_locks()) == [
            "2 locks of prefixes: of a, taken at scheduler.py:7 in take"
        ]
        watch.emit("unlock", PrefixUnlocked(5, "somebody else"))
        watch.emit("unlock", PrefixUnlocked(5, "a"))
        assert list(book.open_locks()) == []

    def test_it_is_the_books_of_this_test_only(self, watch: Any) -> None:
        assert this_stage().book is not None
        watch.close()
        assert this_stage().book is None


class Reader:
    """Keys and values of one layer: the slot, and the number of tokens."""

    first_layer, bytes_per_token = 2, 100

    def read(self, slot: int, tokens: int) -> tuple[Layer, ...]:
        return ((slot, tokens),)


def _kept(rids: list[str]) -> dict[str, Kept]:
    values = this_stage().values
    assert values is not None
    return values.of(rids)


class TestValues:
    def test_what_is_kept(self, watch: Any) -> None:
        watch.emit("slot_free", SlotFreed("early", 4, 10))
        watch.emit("forward", ForwardEntry("decode", kv=Reader()))
        for event in (
            SlotFreed("a", 3, 10),
            SlotFreed("no slot", None, 10),
            SlotFreed("no tokens", 3, 0),
            SlotFreed("large", 3, 50_000),
        ):
            watch.emit("slot_free", event)
        names = ["early", "a", "no slot", "no tokens", "large"]
        assert _kept(names) == {"a": Kept(2, ((3, 10),))}
        assert watch.lines == []

    def test_as_far_as_it_is_few(self, watch: Any) -> None:
        watch.emit("forward", ForwardEntry("decode", kv=Reader()))
        names = [str(number) for number in range(70)]
        for name in (*names, "0"):
            watch.emit("slot_free", SlotFreed(name, int(name), 5 if name != "0" else 6))
        assert list(_kept(names)) == names[:64]
