"""The table of hook points of SGLang, with their decoders; to add one, add a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from pytest_pprank.oplog.file import RECV, SEND
from pytest_pprank.sglang.compat.seams import missing
from pytest_pprank.sglang.events import consensus, experts, facts, forward, memory, transfer
from pytest_pprank.sglang.events.facts import Facts
from pytest_pprank.sglang.events.hook_points import AFTER, BEFORE, HookCall, HookPoint, hook_points
from pytest_pprank.sglang.events.places import PLACES, Methods, Place, Shape
from pytest_pprank.sglang.events.shapes import ClassInspector, family, find_shape
from pytest_pprank.sglang.events.types import Event


def _places(name: str) -> Callable[[], Iterable[tuple[type, str]]]:
    """Return a function that yields the methods of a place, in its classes and subclasses."""
    place = PLACES[name]

    def find() -> Iterator[tuple[type, str]]:
        for methods in _shape(place).methods:
            if methods.hooked:
                yield from _in_family(methods)

    return find


def _shape(place: Place) -> Shape:
    """Return the shape of a place in this SGLang; raises SeamMissing if none fits."""
    if place.name not in _shapes:
        found = find_shape(place, ClassInspector())
        if found.shape is None:
            raise missing(", ".join(found.lacks))
        _shapes[place.name] = found.shape
    return _shapes[place.name]


_shapes: dict[str, Shape] = {}


def _in_family(methods: Methods) -> Iterator[tuple[type, str]]:
    for cls in family(getattr(import_module(methods.module), methods.owner)):
        for name in (*methods.names, *methods.optional):
            if _is_method(vars(cls).get(name)):
                yield cls, name


def _is_method(attribute: object) -> bool:
    abstract = getattr(attribute, "__isabstractmethod__", False)
    return not abstract and (callable(attribute) or isinstance(attribute, classmethod))


def _hook_point(
    name: str,
    decode: Callable[[HookCall], Event],
    facts: Callable[[HookCall], Facts] = facts.nothing,
    moment: str = AFTER,
    **more: Any,
) -> HookPoint:
    about = PLACES[name].about
    return HookPoint(name, about, decode, facts, _places(name), moment, **more)


HOOK_POINTS = (
    _hook_point("prepare_for_extend", forward.extend_prepared, facts.schedule_batch),
    _hook_point("prepare_for_decode", forward.decode_prepared, facts.schedule_batch),
    _hook_point("init_new", forward.forward_made, facts.init_new, subject=lambda p: p.result),
    _hook_point("forward", forward.forward_entry, facts.forward, BEFORE,
          subject=lambda p: p.argument(1, "forward_batch"),
          needs=("prepare_for_extend", "init_new")),
    _hook_point("batch_result", forward.batch_result, facts.batch_result, BEFORE,
          subject=lambda p: p.argument(1, "batch")),
    _hook_point("experts", experts.experts_ran),
    _hook_point("kv_alloc", memory.kv_allocated, facts.kv_alloc),
    _hook_point("kv_free", memory.kv_freed, facts.kv_free, BEFORE),
    _hook_point("kv_clear", memory.kv_cleared),
    _hook_point("slot_alloc", memory.slot_allocated, facts.slot_alloc),
    _hook_point("slot_free", memory.slot_freed, facts.slot_free, BEFORE,
          subject=lambda p: p.argument(1, "req")),
    _hook_point("lock", memory.prefix_locked),
    _hook_point("unlock", memory.prefix_unlocked),
    _hook_point("metadata_alloc", memory.metadata_allocated, facts.metadata_alloc),
    _hook_point("metadata_free", memory.metadata_freed, facts.metadata_free, BEFORE),
    _hook_point("schedule", forward.batch_scheduled),
    _hook_point("consensus_local", consensus.consensus_local),
    _hook_point("consensus_bring", consensus.consensus_brought),
    _hook_point("consensus_apply", consensus.consensus_applied),
    _hook_point("handshake", consensus.handshakes_done, facts.handshake),
    _hook_point("room_told", consensus.room_told, facts.room_told, BEFORE),
    _hook_point("transfer_send", transfer.kv_sent, facts.transfer_send, BEFORE),
    _hook_point("transfer_queued", transfer.kv_queued, moment=BEFORE),
    _hook_point("transfer_read", transfer.kv_read, moment=BEFORE),
    _hook_point("transfer_target", transfer.kv_target, moment=BEFORE),
    _hook_point("transfer_poll", transfer.transfer_polled, facts.transfer_poll),
    HookPoint("p2p_send", "a message to another rank has been issued",
         transfer.message_sent, facts.message, way=SEND, subject=lambda p: p.operation),
    HookPoint("p2p_recv", "the receipt of a message from another rank has been issued",
         transfer.message_received, facts.message, way=RECV, subject=lambda p: p.operation),
)  # fmt: skip
hook_points.register(HOOK_POINTS)
