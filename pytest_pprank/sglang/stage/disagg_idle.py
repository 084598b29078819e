"""Checks whether a Scheduler of prefill or decode is idle, and empties it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.consensus import forget_rooms
from pytest_pprank.sglang.compat.disagg import (
    clear_queues,
    kv_manager,
    metadata_slots,
    queues,
    role_of,
    rooms,
    rooms_reported,
    slots_by_rid,
)
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler

_SHOWN = 6
_REPORT_S = 2.0


def queue_problems(scheduler: Scheduler) -> Iterator[str]:
    """Yield, in words, the requests in the queues of prefill or decode."""
    for name, reqs in queues(scheduler).items():
        if reqs:
            rids = ", ".join(req.rid for req in reqs[:4]) + (", ..." if len(reqs) > 4 else "")
            yield f"{role_of(scheduler)}'s {name} queue: {len(reqs)} requests ({rids})"


def transfer_problems(scheduler: Scheduler, *, failed_rooms: bool = False) -> Iterator[str]:
    """Yield, in words, resources that KV transfers have not released on a Scheduler without work.

    Metadata slots must all be free, and decode's free slots must name no room. The KV manager must
    know no room. Failed rooms count only with `failed_rooms`: SGLang itself (0.5.21) forgets to
    remove some after an abort in prefill's waiting queue; each costs a few bytes.
    """
    used, total = metadata_slots(scheduler)
    if used:
        yield f"metadata slots: {used} of {total} were not given back"
        yield from _used_slots(scheduler)
    known = _counted(rooms(scheduler), failed_rooms=failed_rooms)
    if known:
        shown = [f"{this_stage().room(room)} {known[room]}" for room in sorted(known)]
        yield f"rooms that the KV manager still knows: {', '.join(shown)}"
    yield from _rooms_of_other_stages(scheduler, failed_rooms=failed_rooms)
    if role_of(scheduler) == "decode":
        yield from _stale_rooms(scheduler)


def _rooms_of_other_stages(scheduler: Scheduler, *, failed_rooms: bool) -> Iterator[str]:
    """Yield rooms that the first stage still lists for other stages although these are done.

    The other stages report to it by messages in a thread, so wait a moment for these to arrive.
    """
    end = time.monotonic() + _REPORT_S
    while True:
        reported = {
            stage: _counted(there, failed_rooms=failed_rooms)
            for stage, there in rooms_reported(scheduler).items()
        }
        if not any(reported.values()) or time.monotonic() >= end:
            break
        time.sleep(0.005)
    for stage, counted in reported.items():
        if counted:
            known = [f"{this_stage().room(room)} {counted[room]}" for room in sorted(counted)]
            shown = ", ".join(known[:_SHOWN])
            yield f"rooms of stage {stage} that the first stage still knows: {shown}"


def _counted(rooms_there: dict[int, str], *, failed_rooms: bool) -> dict[int, str]:
    """Return the rooms, with their states, that a Scheduler without work must not know."""
    return {
        room: status for room, status in rooms_there.items() if failed_rooms or status != "Failed"
    }


def _used_slots(scheduler: Scheduler) -> Iterator[str]:
    """Yield the owner of each metadata slot in use, and where it was allocated."""
    named = {slot: rid for rid, slot in slots_by_rid(scheduler)}
    allocator, book = need(scheduler, "req_to_metadata_buffer_idx_allocator"), this_stage().book
    for slot in sorted({*range(allocator.size)} - {*allocator.free_slots})[:_SHOWN]:
        taken = book.metadata.get(slot) if book is not None else None
        who = taken or named.get(slot, "nobody known")
        yield f"metadata slot {slot} is held by {who}"


def _stale_rooms(scheduler: Scheduler) -> Iterator[str]:
    """Yield free slots that name an old room: their next owner would look corrupt (PR 27374)."""
    named = need(need(scheduler, "disagg_metadata_buffers"), "bootstrap_room")
    free = need(scheduler, "req_to_metadata_buffer_idx_allocator").free_slots
    stale = {slot: int(named[slot].flatten()[0]) for slot in free}
    stale = {slot: room for slot, room in stale.items() if room}
    if stale:
        shown = ", ".join(
            f"slot {slot} {this_stage().room(room)}" for slot, room in sorted(stale.items())
        )
        yield f"free metadata slots that still name a room: {shown}"
        freed = book.metadata_freed if (book := this_stage().book) is not None else {}
        places = dict.fromkeys(str(freed[slot].place) for slot in stale if slot in freed)
        yield from (f"such a slot was given back {place}" for place in [*places][:_SHOWN])


def drop_transfers(scheduler: Scheduler) -> None:
    """Empty the queues, the metadata slots and the KV manager's table of rooms."""
    if role_of(scheduler) == "null":
        return
    clear_queues(scheduler)
    if role_of(scheduler) == "decode":
        need(scheduler, "disagg_metadata_buffers").bootstrap_room.zero_()
    allocator = need(scheduler, "req_to_metadata_buffer_idx_allocator")
    allocator.free_slots = deque(range(allocator.size))
    forget_rooms(need(kv_manager(scheduler), "request_status"))
