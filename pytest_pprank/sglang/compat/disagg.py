"""Where a Scheduler of prefill or of decode keeps its requests, metadata slots and rooms."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import FrameType
from typing import Any

from pytest_pprank.sglang.compat.consensus import rooms_here, rooms_of_peers
from pytest_pprank.sglang.compat.seams import need

AGREED = {"bootstrap": False, "inflight": True, "prealloc": False, "transfer": True}
"""The queues that all stages of a role let a request leave in the same iteration; True: also one
that has failed. Before its KV is sent a stage may drop a request that has failed by itself."""


def role_of(scheduler: Any) -> str:
    """Return ``prefill``, ``decode``, or ``null`` for a Scheduler that does both."""
    return str(getattr(getattr(scheduler, "disaggregation_mode", None), "value", "null"))


def queues(scheduler: Any) -> dict[str, list[Any]]:
    """Return the queues that only prefill or decode has, as lists of Reqs.

    Prefill: ``bootstrap`` (handshake with decode), ``inflight`` (KV is being sent). Decode:
    ``prealloc`` (handshake, then memory), ``transfer`` (KV is coming), ``retracted``, and where
    this SGLang has them ``rebootstrap`` (retracted, to be computed by prefill again) and
    ``deferred`` (aborted, held until prefill has stopped writing).
    """
    role = role_of(scheduler)
    if role == "prefill":
        return {
            "bootstrap": list(need(scheduler, "disagg_prefill_bootstrap_queue").queue),
            "inflight": list(need(scheduler, "disagg_prefill_inflight_queue")),
        }
    if role != "decode":
        return {}
    prealloc = need(scheduler, "disagg_decode_prealloc_queue")
    transfer = need(scheduler, "disagg_decode_transfer_queue")
    return {
        "prealloc": [held.req for held in need(prealloc, "queue")],
        "transfer": [held.req for held in need(transfer, "queue")],
        "retracted": list(need(prealloc, "retracted_queue")),
        "rebootstrap": list(getattr(prealloc, "held_rebootstrap_reqs", ())),
        "deferred": [held[0].req for held in getattr(transfer, "_deferred_releases", ())],
    }


def clear_queues(scheduler: Any) -> None:
    """Forget the requests in the queues that only prefill or decode has."""
    if role_of(scheduler) == "prefill":
        need(scheduler, "disagg_prefill_bootstrap_queue").queue.clear()
        need(scheduler, "disagg_prefill_inflight_queue").clear()
        getattr(scheduler, "disagg_prefill_pending_chunk_rids", set()).clear()
    elif role_of(scheduler) == "decode":
        prealloc = need(scheduler, "disagg_decode_prealloc_queue")
        transfer = need(scheduler, "disagg_decode_transfer_queue")
        for held in (prealloc.queue, prealloc.retracted_queue, transfer.queue):
            held.clear()
        getattr(prealloc, "pending_reqs", []).clear()
        getattr(prealloc, "held_rebootstrap_reqs", []).clear()
        getattr(transfer, "_deferred_releases", []).clear()


def deferred_release(scheduler: Any) -> Iterator[tuple[Any, str]]:
    """Yield the object of decode's, and its attribute, that says how many seconds decode keeps what
    a failed transfer was to be written to: one from 0.5.22 on, none before.
    """
    queue, name = need(scheduler, "disagg_decode_transfer_queue"), "deferred_kv_release_timeout"
    if hasattr(queue, name):
        yield queue, name


def metadata_slots(scheduler: Any) -> tuple[int, int]:
    """Return how many metadata slots are held, and how many there are; (0, 0) without a role."""
    if role_of(scheduler) == "null":
        return 0, 0
    allocator = need(scheduler, "req_to_metadata_buffer_idx_allocator")
    size = int(need(allocator, "size"))
    return size - int(need(allocator, "available_size")()), size


def slots_by_rid(scheduler: Any) -> Iterator[tuple[str, int]]:
    """Yield request id and metadata slot of each request of a queue that has one."""
    if role_of(scheduler) == "prefill":
        for held in (*queues(scheduler)["bootstrap"], *scheduler.waiting_queue):
            yield held.rid, int(held.metadata_buffer_index)
    elif role_of(scheduler) == "decode":
        for entry in need(scheduler, "disagg_decode_transfer_queue").queue:
            yield entry.req.rid, int(entry.metadata_buffer_index)


def kv_manager(scheduler: Any) -> Any:
    """Return the KV manager of a Scheduler of prefill or decode."""
    name = {
        "prefill": "disagg_prefill_bootstrap_queue",
        "decode": "disagg_decode_prealloc_queue",
    }[role_of(scheduler)]
    return need(need(scheduler, name), "kv_manager")


def rooms(scheduler: Any) -> dict[int, str]:
    """Return the rooms that the KV manager has a status for, with its name; 0 is that of requests
    that came without one.
    """
    if role_of(scheduler) == "null":
        return {}
    status = need(kv_manager(scheduler), "request_status")
    return {int(room or 0): status_name(value) for room, value in rooms_here(status).items()}


def rooms_told(scheduler: Any) -> dict[int, dict[int, str]]:
    """Return, on the first stage of a role whose stages agree through a store, what the others have
    told it of their rooms, by stage; empty elsewhere.
    """
    if role_of(scheduler) == "null":
        return {}
    peers = rooms_of_peers(need(kv_manager(scheduler), "request_status"))
    return {
        stage: {room: status_name(value) for room, value in rooms.items()}
        for stage, rooms in peers.items()
        if rooms
    }


def status_name(value: Any) -> str:
    """Return SGLang's word for a status of a room (see KVPoll); empty for None."""
    if value is None:
        return ""
    poll = poll_class()
    names = {getattr(poll, name): name for name in vars(poll) if not name.startswith("_")}
    return str(names.get(value, value))


def status_word(status: Any) -> str:
    """Return what a poll has answered, in SGLang's own words where it has one."""
    return str(getattr(status, "name", status))


def poll_class() -> Any:
    """Return SGLang's KVPoll: the states of a transfer, as numbers."""
    return need(import_module("sglang.srt.disaggregation.base.conn"), "KVPoll")


def kv_buffers(receiver: Any) -> list[tuple[int, int]]:
    """Return (address, bytes of a page) of each buffer of KV into which a receiver of decode may
    be sent pages.
    """
    args = need(need(receiver, "kv_mgr"), "kv_args")
    return list(zip(need(args, "kv_data_ptrs"), need(args, "kv_item_lens"), strict=True))


def chunk_under_way() -> Any | None:
    """Return the chunk (TransferKVChunk) that the calling thread of the transfer engine sends; None
    in another thread, also in those to which it hands parts of the work.

    Looked for where it is: the thread's own function, ``transfer_worker``, keeps it in a variable.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "transfer_worker":
            return frame.f_locals.get("kv_chunk")
        frame = frame.f_back
    return None
