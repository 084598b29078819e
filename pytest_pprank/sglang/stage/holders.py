"""Which request holds KV and slots on this stage, and what it was last seen at.

A request that has been forgotten everywhere leaves its tokens behind without a name, so those that
went through a forward are kept here until the Scheduler is reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat import requests
from pytest_pprank.sglang.stage.kv_book import current_book

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, Scheduler

_seen: dict[int, dict[str, tuple[Req, str]]] = {}
"""By id of a Scheduler, of which a rank has one: request id to Req and mode of its last forward."""
_rooms: dict[int, str] = {}
"""Request id by bootstrap room; a room is never used twice."""


def note_room(room: int, rid: str) -> None:
    """Note in which room the two roles meet for a request."""
    _rooms[room] = rid


def room_owner(room: int) -> str:
    """Return the id of the request whose room this is, in words where it is not known."""
    return _rooms.get(room, "nobody known")


def note_forward(scheduler: Scheduler, reqs: Iterable[Req], mode: str) -> None:
    """Note the requests of a batch that is about to run on this stage."""
    seen = _seen.setdefault(id(scheduler), {})
    seen.update({req.rid: (req, mode) for req in reqs})


def forget_forwards(scheduler: Scheduler) -> None:
    """Forget all requests: a reset has taken everything from them."""
    _seen.pop(id(scheduler), None)


def seen_requests(scheduler: Scheduler) -> list[Req]:
    """Return the Reqs that went through a forward here since the last reset."""
    return [req for req, _ in _seen.get(id(scheduler), {}).values()]


def holders(scheduler: Scheduler) -> Iterator[str]:
    """Yield, in words, each noted request that holds KV tokens or a request slot on this stage."""
    for rid, (req, mode) in _seen.get(id(scheduler), {}).items():
        slot, tokens = requests.slot_of(req), requests.allocated_tokens_of(req)
        if slot is None:
            continue
        reason = requests.finish_reason_of(req)
        end = f"finished ({reason})" if reason else "not finished"
        book = current_book()
        stack = book.slots.get(rid, ()) if book is not None else ()
        taken = f"; taken at {' < '.join(map(str, stack[:4]))}" if stack else ""
        yield (
            f"held by {rid}: request slot {slot}, {tokens} KV tokens of its own or locked; "
            f"last forward: {mode}; {end}, {len(req.output_ids)} output tokens{taken}"
        )
