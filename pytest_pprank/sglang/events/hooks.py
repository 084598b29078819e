"""The hook points of SGLang, and what makes an event of each passing; a new one is a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.consensus import applying_methods, ring_methods
from pytest_pprank.sglang.events import consensus, forward, memory, transfer
from pytest_pprank.sglang.events import facts as told
from pytest_pprank.sglang.seams import missing, need
from pytest_pprank.sglang.taps import BEFORE, Seam, taps
from pytest_pprank.wire.ledger_file import RECV, SEND


def _methods(
    module: str, owner: str, *names: str, optional: tuple[str, ...] = ()
) -> Callable[[], Iterable[tuple[type, str]]]:
    """Return what finds methods of a class, in it and in all its subclasses that are imported.

    Those in `optional` are not in every SGLang.
    """

    def find() -> Iterator[tuple[type, str]]:
        base: type = need(import_module(module), owner)
        families = list(_family(base))
        for name in names:
            if not any(name in vars(cls) for cls in families):
                raise missing(f"{owner}.{name}")
        for cls in families:
            yield from (
                (cls, name) for name in (*names, *optional) if _is_method(vars(cls).get(name))
            )

    return find


def _family(cls: type) -> Iterator[type]:
    yield cls
    subclass: type
    for subclass in cls.__subclasses__():
        yield from _family(subclass)


def _is_method(attribute: Any) -> bool:
    abstract = getattr(attribute, "__isabstractmethod__", False)
    return not abstract and (callable(attribute) or isinstance(attribute, classmethod))


def _both(*finders: Callable[[], Iterable[tuple[type, str]]]) -> Any:
    return lambda: [place for find in finders for place in find()]


_BATCH = ("sglang.srt.managers.schedule_batch", "ScheduleBatch")
_FORWARD = ("sglang.srt.model_executor.forward_batch_info", "ForwardBatch")
_RUNNER = ("sglang.srt.model_executor.model_runner", "ModelRunner")
_SCHEDULER = ("sglang.srt.managers.scheduler", "Scheduler")
_ALLOCATOR = ("sglang.srt.mem_cache.allocator", "BaseTokenToKVPoolAllocator")
_PP = ("sglang.srt.managers.scheduler_pp_mixin", "SchedulerPPMixin")
_SLOTS = ("sglang.srt.mem_cache.memory_pool", "ReqToTokenPool")
_TREE = ("sglang.srt.mem_cache.base_prefix_cache", "BasePrefixCache")
_DISAGG = "sglang.srt.disaggregation"
_CONN = "sglang.srt.disaggregation.base.conn"
# not a subclass of the other one
_DECODE_SLOTS = (f"{_DISAGG}.decode", "DecodeReqToTokenPool")
_METADATA = (f"{_DISAGG}.utils", "ReqToMetadataIdxAllocator")


def _consensus(
    names: Callable[[], Iterable[str]],
) -> Callable[[], Iterable[tuple[type, str]]]:
    return lambda: _methods(*_PP, *names())()


_schedule_methods = _both(
    _methods(*_SCHEDULER, "get_next_batch_to_run", "get_new_batch_prefill"),
    _methods(
        f"{_DISAGG}.decode", "SchedulerDisaggregationDecodeMixin",
        "get_next_disagg_decode_batch_to_run",
    ),
)  # fmt: skip

SEAMS = (
    Seam("prepare_for_extend", "a ScheduleBatch has been prepared for a forward of prompts",
         forward.extend_prepared, told.schedule_batch, _methods(*_BATCH, "prepare_for_extend")),
    Seam("prepare_for_decode", "a ScheduleBatch has been prepared for a forward of one token each",
         forward.decode_prepared, told.schedule_batch, _methods(*_BATCH, "prepare_for_decode")),
    Seam("init_new", "a ForwardBatch has been made of a ScheduleBatch",
         forward.forward_made, told.init_new, _methods(*_FORWARD, "init_new"),
         subject=lambda p: p.result),
    Seam("forward", "a ForwardBatch enters the model",
         forward.forward_entry, told.forward, _methods(*_RUNNER, "forward"), BEFORE,
         subject=lambda p: p.argument(1, "forward_batch"),
         needs=("prepare_for_extend", "init_new")),
    Seam("batch_result", "the result of a batch is about to be processed",
         forward.batch_result, told.batch_result,
         _methods(*_SCHEDULER, "process_batch_result"), BEFORE,
         subject=lambda p: p.argument(1, "batch")),
    Seam("kv_alloc", "KV tokens have been taken",
         memory.kv_allocated, told.kv_alloc,
         _methods(*_ALLOCATOR, "alloc", "alloc_extend", "alloc_decode")),
    Seam("kv_free", "KV tokens are about to be given back",
         memory.kv_freed, told.kv_free,
         _methods(*_ALLOCATOR, "free", optional=("_release_page_ids",)), BEFORE),
    Seam("kv_clear", "an allocator has forgotten who holds what",
         memory.kv_cleared, told.nothing, _methods(*_ALLOCATOR, "clear")),
    Seam("slot_alloc", "request slots have been taken",
         memory.slot_allocated, told.slot_alloc,
         _both(_methods(*_SLOTS, "alloc"), _methods(*_DECODE_SLOTS, "alloc"))),
    Seam("slot_free", "a request slot is about to be given back",
         memory.slot_freed, told.slot_free,
         _both(_methods(*_SLOTS, "free"), _methods(*_DECODE_SLOTS, "free")), BEFORE,
         subject=lambda p: p.argument(1, "req")),
    Seam("lock", "a prefix in the tree cache has been locked",
         memory.prefix_locked, told.nothing, _methods(*_TREE, "inc_lock_ref")),
    Seam("unlock", "a prefix in the tree cache has been unlocked",
         memory.prefix_unlocked, told.nothing, _methods(*_TREE, "dec_lock_ref")),
    Seam("metadata_alloc", "a metadata slot of a KV transfer has been taken",
         memory.metadata_allocated, told.metadata_alloc, _methods(*_METADATA, "alloc")),
    Seam("metadata_free", "a metadata slot is about to be given back",
         memory.metadata_freed, told.metadata_free, _methods(*_METADATA, "free"), BEFORE),
    Seam("schedule", "a Scheduler has looked what to run next",
         forward.batch_scheduled, told.nothing, _schedule_methods),
    Seam("consensus_local", "a stage has looked for which requests it is ready",
         consensus.consensus_local, told.nothing, _methods(*_PP, "get_rids")),
    Seam("consensus_bring", "a stage has brought its requests to a consensus",
         consensus.consensus_brought, told.nothing, _consensus(ring_methods)),
    Seam("consensus_apply", "a stage has applied a consensus that it received",
         consensus.consensus_applied, told.nothing, _consensus(applying_methods)),
    Seam("transfer_send", "KV is about to be sent to the decode side",
         transfer.kv_sent, told.transfer_send, _methods(_CONN, "BaseKVSender", "send"), BEFORE),
    Seam("transfer_poll", "a KV transfer has been asked how it goes",
         transfer.transfer_polled, told.transfer_poll,
         _both(_methods(_CONN, "BaseKVSender", "poll"), _methods(_CONN, "BaseKVReceiver", "poll"))),
    Seam("p2p_send", "a message to another rank has been issued",
         transfer.message_sent, told.message, way=SEND, subject=lambda p: p.operation),
    Seam("p2p_recv", "the receipt of a message from another rank has been issued",
         transfer.message_received, told.message, way=RECV, subject=lambda p: p.operation),
)  # fmt: skip
taps.register(SEAMS)
