"""Finds what SGLang's tables still hold of requests that have ended.

A table with an entry for each request (by request id, by bootstrap room, or with the Req itself)
must lose the entry however the request ends. Otherwise it grows for ever, and what it says is taken
for a later request of that id or room. The tables are found by walking over SGLang's objects, so a
new one is looked at without a change here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.disagg import kv_manager, role_of, rooms
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.stage.stage import this_stage
from pytest_pprank.sglang.static.release import is_older_than

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler

OPAQUE = frozenset(
    {
        "Req",  # found where it is held; what it holds itself ends with it
        "ScheduleBatch",  # one without requests may stay in a microbatch's slot (see idle)
        "GenerationBatchResult",
        "ServerArgs",
        "TreeNode",
        "UnifiedTreeNode",
    }
)
"""Names of classes of SGLang whose attributes are not looked at."""
KEPT = frozenset(
    {
        # after a transfer that failed, SGLang cannot know whether somebody still writes: it keeps
        # the room until it is used again
        "_deferred_ack_poisoned_rooms",
        "_staging_outstanding",
        # an abort amid a prompt, which a pipeline of prefill never looks at again (0.5.23)
        "_pending_chunked_abort_req",
        # the last two batches of the overlap schedule
        "batch_record_buf",
        # reported by the check of memory
        "request_status",
    }
)
"""Attributes that keep a request or a room on purpose, or for which another check is there."""
if is_older_than("0.5.20"):
    KEPT |= {"addr_to_rooms_tracker"}  # decode's next heartbeat removes what has ended
_CONTAINERS = (list, tuple, set, frozenset, deque)
_MOST = 100_000
"""Objects that are looked at; the Scheduler of a tiny model has about 1,000."""
_WAIT_S = 2.0

Found = tuple[str, str]
"""A table, and the request or room that it names."""


def leftovers(scheduler: Scheduler) -> list[str]:
    """Return, in words, the tables that name a request or a room, on a Scheduler without work.

    What was there before the Scheduler's last reset does not count. Threads of the KV manager may
    still be at it, so wait a moment for them.
    """
    end = time.monotonic() + _WAIT_S
    while True:
        found = find(scheduler) - this_stage().leftovers
        if not found or time.monotonic() >= end:
            return [f"{table}: {what}" for table, what in sorted(found)]
        time.sleep(0.01)


def find(scheduler: Scheduler) -> set[Found]:
    """Return what the tables of a Scheduler name at this moment."""
    walk = Walk(this_stage().rids())
    walk.into(scheduler, "Scheduler")
    if role_of(scheduler) == "null":
        return walk.found
    known = rooms(scheduler)  # the check of memory reports what belongs to these
    walk_rooms = Walk(room for room in this_stage().rooms() if room not in known)
    walk_rooms.into(kv_manager(scheduler), "KV manager")
    named = {(table, this_stage().room(int(room))) for table, room in walk_rooms.found}
    return walk.found | named


class Walk:
    """Goes through SGLang's objects and containers, and looks for `names`."""

    def __init__(self, names: Iterable[str | int]) -> None:
        self._names = frozenset(names)
        self._seen: set[int] = set()
        self._todo: list[tuple[object, str]] = []
        self.found: set[Found] = set()

    def into(self, root: object, path: str) -> None:
        self._todo.append((root, path))
        while self._todo and len(self._seen) < _MOST:
            value, path = self._todo.pop()
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._look(value, path)

    def _look(self, value: object, path: str) -> None:
        if isinstance(value, Mapping):
            for key, item in list(value.items()):
                self._note(key, path)
                self._hold(item, f"{path}[...]")
        elif isinstance(value, _CONTAINERS):
            for item in list(value):
                if isinstance(value, (set, frozenset)):
                    self._note(item, path)
                self._hold(item, path)
        elif is_sglangs(value):
            for name, item in attributes(value):
                if name not in KEPT:
                    if "room" in name:
                        self._note(item, f"{path}.{name}")
                    self._hold(item, f"{path}.{name}")

    def _note(self, key: object, path: str) -> None:
        """Note a key, or something else that surely is an id or a room."""
        if type(key) in (str, int) and key in self._names:
            self.found.add((path, str(key)))

    def _hold(self, value: object, path: str) -> None:
        """Note a Req or a request id (other numbers than keys need not be rooms), or look at it."""
        if type(value).__name__ == "Req":
            self._note(need(value, "rid"), path)
        elif isinstance(value, str):
            self._note(value, path)
        elif isinstance(value, (Mapping, *_CONTAINERS)) or is_sglangs(value):
            self._todo.append((value, path))


def is_sglangs(value: object) -> bool:
    """Return whether to look at the attributes of an object."""
    kind = type(value)
    return kind.__module__.startswith("sglang.") and kind.__name__ not in OPAQUE


def attributes(value: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an object that has a dict or slots."""
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        for name in slots_of(kind):
            if hasattr(value, name):
                yield name, getattr(value, name)


def slots_of(kind: type) -> Collection[str]:
    """Return the names of the slots that a class itself defines."""
    slots: Collection[str] = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots
