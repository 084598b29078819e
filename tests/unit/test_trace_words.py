"""SGLang's events in the words of a trace."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_pprank.sglang.events import types
from pytest_pprank.trace.record.describe import describe

POOL = types.TokenPool(1, 64, lambda: ())


@pytest.mark.parametrize(
    ("event", "kind", "name"),
    [
        (types.ForwardEntry("extend", rids=("a", "b")), "forward", "extend a, b"),
        (
            types.ForwardEntry("decode", rids=("a", "b", "c", "d", "e")),
            "forward",
            "decode a, b, c +2",
        ),
        (types.BatchResult(("a",), "decode"), "batch", "result: decode a"),
        (types.BatchPrepared(("a",), POOL, (5,), range(5)), "batch", "prepare a"),
        (
            types.BatchScheduled((types.Pending("a", 9),), 2, 60, 64, 7),
            "batch",
            "schedule: 1 pending",
        ),
        (types.KvAllocated(POOL, (1, 2, 3), "a"), "memory", "KV taken: 3 tokens for a"),
        (types.KvAllocated(None), "memory", "KV taken"),
        (types.KvFreed(POOL, (4,)), "memory", "KV freed: 1 tokens"),
        (types.SlotAllocated(()), "memory", "slot taken: none left"),
        (types.MetadataAllocated(None), "memory", "metadata slot taken: none left"),
        (types.KvSent("sender", 40, 1000), "transfer", "send KV of 40 tokens"),
        (types.TransferPolled(1000, "Success"), "transfer", "KV transfer: Success"),
        (types.KvRead(((0, 100), (200, 28))), "transfer", "transfer engine reads 128 B"),
        (types.RoomTold(5, ""), "agreement", "tells room 5: removed"),
        (types.ConsensusBrought(("a",)), "agreement", "brings a"),
        (types.HandshakesDone(("a",), {"a": "Success"}), "agreement", "handshake done: a"),
    ],
)
def test_words(event: types.Event, kind: str, name: str) -> None:
    described = describe(event)
    assert described is not None
    assert (described.kind, described.name) == (kind, name)


@pytest.mark.parametrize(
    "event",
    [
        types.ConsensusLocal(frozenset()),
        types.ConsensusBrought(None),
        types.ConsensusBrought(()),
        types.ConsensusApplied(None, None),
        types.HandshakesDone((), {}),
    ],
)
def test_what_says_nothing_is_left_out(event: types.Event) -> None:
    assert describe(event) is None


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ((9, 3, 4, 5), "3-5, 9"),
        ((2, 9, 4), "2, 4, 9"),
        ((4, 3, 2), "2-4"),
        ((7,), "7"),
        ((), ""),
        (tuple(range(5, 999)), "5-998"),
        (tuple(range(0, 400, 2)), ", ".join(map(str, range(0, 128, 2))) + ", ..."),
    ],
)
def test_tokens_are_shown_as_ranges(tokens: tuple[int, ...], shown: str) -> None:
    described = describe(types.KvAllocated(POOL, tokens, "a"))
    assert described is not None
    assert described.details["tokens"] == shown


def test_chunks_of_prompts_are_shown() -> None:
    made = types.ForwardMade(types.Forward(2, "extend", ("a", "b"), ((0, 16), (16, 20))), 2)
    described = describe(made)
    assert described is not None
    assert described.details["chunks"] == ["a: 0-16", "b: 16-20"]


def test_each_event_of_a_recorded_hook_point_has_words() -> None:
    shown_otherwise = {
        "ExpertsRan",
        "KvCleared",
        "PrefixLocked",
        "PrefixUnlocked",
        "LogRecord",
        "Quiescent",
    }
    messages = {"Message", "MessageSent", "MessageReceived", "Event"}
    from pytest_pprank.trace.record.describe import _WRITERS

    events = {
        name
        for name in types.__all__
        if isinstance(found := getattr(types, name), type) and issubclass(found, types.Event)
    }
    described = {kind.__name__ for kind in _WRITERS}
    assert events - described == shown_otherwise | messages
    assert all(dataclasses.is_dataclass(kind) for kind in _WRITERS)
