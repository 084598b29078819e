"""The table of hook points of SGLang, with their decoders; to add one, add a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from pytest_pprank.oplog.file import RECV, SEND
from pytest_pprank.sglang.compat.seams import missing
from pytest_pprank.sglang.events import consensus, forward, memory, transfer
from pytest_pprank.sglang.events import facts as told
from pytest_pprank.sglang.events.facts import Facts
from pytest_pprank.sglang.events.hook_points import AFTER, BEFORE, Passage, Seam, taps
from pytest_pprank.sglang.events.look import Classes, family, look
from pytest_pprank.sglang.events.places import PLACES, Methods, Place, Shape
from pytest_pprank.sglang.events.types import Event


def _places(name: str) -> Callable[[], Iterable[tuple[type, str]]]:
    """Return a function that yields the methods of a place, in its classes and subclasses."""
    place = PLACES[name]

    def find() -> Iterator[tuple[type, str]]:
        for methods in _shape(place).methods:
            if methods.passed:
                yield from _in_family(methods)

    return find


def _shape(place: Place) -> Shape:
    """Return the shape of a place in this SGLang; raises SeamMissing if none fits."""
    if place.name not in _shapes:
        found = look(place, Classes())
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


def _seam(
    name: str,
    decode: Callable[[Passage], Event],
    facts: Callable[[Passage], Facts] = told.nothing,
    moment: str = AFTER,
    **more: Any,
) -> Seam:
    about = PLACES[name].about
    return Seam(name, about, decode, facts, _places(name), moment, **more)


SEAMS = (
    _seam("prepare_for_extend", forward.extend_prepared, told.schedule_batch),
    _seam("prepare_for_decode", forward.decode_prepared, told.schedule_batch),
    _seam("init_new", forward.forward_made, told.init_new, subject=lambda p: p.result),
    _seam("forward", forward.forward_entry, told.forward, BEFORE,
          subject=lambda p: p.argument(1, "forward_batch"),
          needs=("prepare_for_extend", "init_new")),
    _seam("batch_result", forward.batch_result, told.batch_result, BEFORE,
          subject=lambda p: p.argument(1, "batch")),
    _seam("kv_alloc", memory.kv_allocated, told.kv_alloc),
    _seam("kv_free", memory.kv_freed, told.kv_free, BEFORE),
    _seam("kv_clear", memory.kv_cleared),
    _seam("slot_alloc", memory.slot_allocated, told.slot_alloc),
    _seam("slot_free", memory.slot_freed, told.slot_free, BEFORE,
          subject=lambda p: p.argument(1, "req")),
    _seam("lock", memory.prefix_locked),
    _seam("unlock", memory.prefix_unlocked),
    _seam("metadata_alloc", memory.metadata_allocated, told.metadata_alloc),
    _seam("metadata_free", memory.metadata_freed, told.metadata_free, BEFORE),
    _seam("schedule", forward.batch_scheduled),
    _seam("consensus_local", consensus.consensus_local),
    _seam("consensus_bring", consensus.consensus_brought),
    _seam("consensus_apply", consensus.consensus_applied),
    _seam("handshake", consensus.handshakes_done, told.handshake),
    _seam("room_told", consensus.room_told, told.room_told, BEFORE),
    _seam("transfer_send", transfer.kv_sent, told.transfer_send, BEFORE),
    _seam("transfer_queued", transfer.kv_queued, moment=BEFORE),
    _seam("transfer_read", transfer.kv_read, moment=BEFORE),
    _seam("transfer_target", transfer.kv_target, moment=BEFORE),
    _seam("transfer_poll", transfer.transfer_polled, told.transfer_poll),
    Seam("p2p_send", "a message to another rank has been issued",
         transfer.message_sent, told.message, way=SEND, subject=lambda p: p.operation),
    Seam("p2p_recv", "the receipt of a message from another rank has been issued",
         transfer.message_received, told.message, way=RECV, subject=lambda p: p.operation),
)  # fmt: skip
taps.register(SEAMS)
