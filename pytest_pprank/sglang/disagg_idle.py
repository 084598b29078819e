"""What keeps a Scheduler of prefill or decode from being idle, and how it is emptied."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from pytest_pprank.sglang.disagg_seams import (
    kv_manager,
    metadata_slots,
    queues,
    role_of,
    rooms,
    slots_by_rid,
)
from pytest_pprank.sglang.seams import need


def queue_problems(scheduler: Any) -> Iterator[str]:
    """Yield, in words, the requests in the queues of prefill or decode."""
    for name, reqs in queues(scheduler).items():
        if reqs:
            rids = ", ".join(req.rid for req in reqs[:4]) + (", ..." if len(reqs) > 4 else "")
            yield f"{role_of(scheduler)}'s {name} queue: {len(reqs)} requests ({rids})"


def transfer_problems(scheduler: Any) -> Iterator[str]:
    """Yield what a Scheduler without requests should have got back from KV transfers and has not.

    Metadata slots: all free, and a free slot of decode's names no room. Rooms: none known but those
    that have failed, of which SGLang itself forgets to remove some (0.5.21: after an abort in
    prefill's waiting queue); these cost a few bytes each.
    """
    held, total = metadata_slots(scheduler)
    if held:
        names = ", ".join(f"{rid}: slot {slot}" for rid, slot in slots_by_rid(scheduler))
        yield f"metadata slots: {held} of {total} were not given back ({names or 'held by nobody'})"
    known = {room: status for room, status in rooms(scheduler).items() if status != "Failed"}
    if known:
        shown = ", ".join(f"room {room} {status}" for room, status in sorted(known.items()))
        yield f"rooms that the KV manager still knows: {shown}"
    if role_of(scheduler) == "decode":
        yield from _stale_rooms(scheduler)


def _stale_rooms(scheduler: Any) -> Iterator[str]:
    """A free slot that names an old room makes its next owner look corrupt (SGLang PR 27374)."""
    named = need(need(scheduler, "disagg_metadata_buffers"), "bootstrap_room")
    free = need(scheduler, "req_to_metadata_buffer_idx_allocator").free_slots
    stale = {slot: int(named[slot].flatten()[0]) for slot in free}
    stale = {slot: room for slot, room in stale.items() if room}
    if stale:
        shown = ", ".join(f"slot {slot} room {room}" for slot, room in sorted(stale.items()))
        yield f"free metadata slots that still name a room: {shown}"


def drop_transfers(scheduler: Any) -> None:
    """Forget all that the queues, the metadata slots and the KV manager hold."""
    if role_of(scheduler) == "null":
        return
    if role_of(scheduler) == "prefill":
        need(scheduler, "disagg_prefill_bootstrap_queue").queue.clear()
        need(scheduler, "disagg_prefill_inflight_queue").clear()
        getattr(scheduler, "disagg_prefill_pending_chunk_rids", set()).clear()
    else:
        prealloc = need(scheduler, "disagg_decode_prealloc_queue")
        transfer = need(scheduler, "disagg_decode_transfer_queue")
        for held in (prealloc.queue, prealloc.retracted_queue, transfer.queue):
            held.clear()
        for owner, name in (
            (prealloc, "pending_reqs"),
            (prealloc, "held_rebootstrap_reqs"),
            (transfer, "_deferred_releases"),
        ):
            getattr(owner, name, []).clear()
        need(scheduler, "disagg_metadata_buffers").bootstrap_room.zero_()
    allocator = need(scheduler, "req_to_metadata_buffer_idx_allocator")
    allocator.free_slots = deque(range(allocator.size))
    need(kv_manager(scheduler), "request_status").clear()
