"""Accessors for the queues, metadata slots and rooms of a Scheduler of prefill or decode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from types import FrameType
from typing import Any

from pytest_pprank.sglang.compat.consensus import rooms_here, rooms_of_peers
from pytest_pprank.sglang.compat.seams import need

AGREED = {"bootstrap": False, "inflight": True, "prealloc": False, "transfer": True}
"""The queues that a request leaves in the same iteration on all stages of a role.

True: also a failed request. Before its KV is sent, a stage may drop a failed request alone.
"""


def role_of(scheduler: Any) -> str:
    """Return ``prefill``, ``decode``, or ``null`` for a Scheduler that does both."""
    return str(getattr(getattr(scheduler, "disaggregation_mode", None), "value", "null"))


def queues(scheduler: Any) -> dict[str, list[Any]]:
    """Return the queues that only prefill or decode has, as lists of Reqs.

    Prefill: ``bootstrap`` (handshake with decode), ``inflight`` (KV is being sent). Decode:
    ``prealloc`` (handshake, then memory), ``transfer`` (KV is arriving), ``retracted``, and in
    releases that have them ``rebootstrap`` (retracted, prefill will recompute it) and ``deferred``
    (aborted, but prefill may still write its KV).
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
        "prealloc": [entry.req for entry in need(prealloc, "queue")],
        "transfer": [entry.req for entry in need(transfer, "queue")],
        "retracted": list(need(prealloc, "retracted_queue")),
        "rebootstrap": list(getattr(prealloc, "held_rebootstrap_reqs", ())),
        "deferred": [entry[0].req for entry in getattr(transfer, "_deferred_releases", ())],
    }


def clear_queues(scheduler: Any) -> None:
    """Empty the queues that only prefill or decode has."""
    if role_of(scheduler) == "prefill":
        need(scheduler, "disagg_prefill_bootstrap_queue").queue.clear()
        need(scheduler, "disagg_prefill_inflight_queue").clear()
        getattr(scheduler, "disagg_prefill_pending_chunk_rids", set()).clear()
    elif role_of(scheduler) == "decode":
        prealloc = need(scheduler, "disagg_decode_prealloc_queue")
        transfer = need(scheduler, "disagg_decode_transfer_queue")
        for entry in (prealloc.queue, prealloc.retracted_queue, transfer.queue):
            entry.clear()
        getattr(prealloc, "pending_reqs", []).clear()
        getattr(prealloc, "held_rebootstrap_reqs", []).clear()
        getattr(transfer, "_deferred_releases", []).clear()


def deferred_release(scheduler: Any) -> Iterator[tuple[Any, str]]:
    """Yield (object, attribute) of decode's time-out for releasing a failed transfer's memory.

    The attribute is in seconds. Yields one pair from 0.5.22 on, none before.
    """
    queue, name = need(scheduler, "disagg_decode_transfer_queue"), "deferred_kv_release_timeout"
    if hasattr(queue, name):
        yield queue, name


def metadata_slots(scheduler: Any) -> tuple[int, int]:
    """Return how many metadata slots are in use, and how many exist; (0, 0) without a role."""
    if role_of(scheduler) == "null":
        return 0, 0
    allocator = need(scheduler, "req_to_metadata_buffer_idx_allocator")
    size = int(need(allocator, "size"))
    return size - int(need(allocator, "available_size")()), size


def slots_by_rid(scheduler: Any) -> Iterator[tuple[str, int]]:
    """Yield request id and metadata slot of each queued request that has one."""
    if role_of(scheduler) == "prefill":
        for entry in (*queues(scheduler)["bootstrap"], *scheduler.waiting_queue):
            yield entry.rid, int(entry.metadata_buffer_index)
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


def known_prefills(scheduler: object) -> set[int]:
    """Return the ports of the bootstrap servers whose prefill this stage of decode takes for alive.

    It learns of one with the first request that names it.
    """
    addresses = need(kv_manager(scheduler), "prefill_info_table")
    return {int(address.rpartition(":")[2]) for address in addresses}


def missed_heartbeats(scheduler: object) -> int:
    """Return how many heartbeats of prefill this stage of decode has missed in a row."""
    return sum(need(kv_manager(scheduler), "heartbeat_failures").values())


def status_report(manager: Any) -> str:
    """Return the name of the method with which a KV manager of prefill tells decode of a transfer.

    Up to 0.5.20 it is Mooncake's, later that of all transfer backends.
    """
    names = ("send_kv_status_message", "sync_status_to_decode_endpoint")
    return next((name for name in names if hasattr(manager, name)), names[0])


def rooms(scheduler: Any) -> dict[int, str]:
    """Return the name of the status of each room that the KV manager knows.

    Room 0 is that of requests that came without one.
    """
    if role_of(scheduler) == "null":
        return {}
    status = need(kv_manager(scheduler), "request_status")
    return {int(room or 0): status_name(value) for room, value in rooms_here(status).items()}


def rooms_reported(scheduler: Any) -> dict[int, dict[int, str]]:
    """Return what the other stages have reported to the first stage about their rooms, by stage.

    Empty on other stages, and if the role's stages do not agree through a store.
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
    """Return the KVPoll name of a room's status; "" for None."""
    if value is None:
        return ""
    return _status_names().get(value, str(value))


@lru_cache(1)
def _status_names() -> dict[Any, str]:
    poll = poll_class()
    return {getattr(poll, name): name for name in vars(poll) if not name.startswith("_")}


def poll_class() -> Any:
    """Return SGLang's class KVPoll: the states of a transfer, as numbers."""
    return need(import_module("sglang.srt.disaggregation.base.conn"), "KVPoll")


def kv_buffers(receiver: Any) -> list[tuple[int, int]]:
    """Return (address, bytes per page) of each KV buffer into which pages may be sent to decode.

    `receiver`: a KV receiver of decode.
    """
    args = need(need(receiver, "kv_mgr"), "kv_args")
    return list(zip(need(args, "kv_data_ptrs"), need(args, "kv_item_lens"), strict=True))


def chunk_under_way() -> Any | None:
    """Return the chunk (TransferKVChunk) that the calling thread of the transfer engine sends.

    None in other threads, including those to which that thread hands parts of the work. The chunk
    is a local variable of the thread's function ``transfer_worker``; it is read from that frame.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "transfer_worker":
            return frame.f_locals.get("kv_chunk")
        frame = frame.f_back
    return None
