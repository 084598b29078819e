"""What a rank knows about its pipeline stage: one `Stage` for the lifetime of the rank.

A rank has at most one Scheduler. The `Stage` also has the records of the running test, which its
checks keep and which explain failures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.compat import requests

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, Scheduler
    from pytest_pprank.sglang.driver.tokenizer_side import TokenizerSide
    from pytest_pprank.sglang.model.kv_values import KvValues
    from pytest_pprank.sglang.stage.kv_book import KvBook
    from pytest_pprank.sglang.stage.profiler import ProfilerRun


@dataclass(frozen=True)
class Started:
    """What `start_scheduler` keeps in addition to the Scheduler itself.

    `tokenizer_side` is bound on the first stage only. `profiler_run`: what SGLang's dynamic-chunk
    profiler did during the start. `attributes`: the Scheduler's own plain values (numbers, strings,
    None, enums) and the chunk sizer, which a test or a later run of the profiler may change.
    `names`: the names of all its attributes.
    """

    tokenizer_side: TokenizerSide | None
    profiler_run: ProfilerRun
    attributes: Mapping[str, object]
    names: frozenset[str]


@dataclass
class Stage:
    """The Scheduler that was started here, its requests, and the records of the running test.

    Requests that went through a forward are kept until the Scheduler is reset. Otherwise the tokens
    of a request that SGLang has forgotten could not be attributed to it.
    """

    book: KvBook | None = None
    """Owners of KV and slots in the running test; None if no check records them."""
    values: KvValues | None = None
    """Copies of KV in the running test; None if no check makes them."""
    _scheduler: Scheduler | None = None
    _started: Started | None = None
    _forwards: dict[str, tuple[Req, str]] = field(default_factory=dict)
    """By request id, the Req and the mode of its last forward."""
    _rooms: dict[int, str] = field(default_factory=dict)
    """Request id by bootstrap room; a room is never reused."""
    _rids: set[str] = field(default_factory=set)
    """The ids of all requests that were sent to this group of ranks."""
    leftovers: frozenset[tuple[str, str]] = frozenset()
    """What SGLang's tables still named after the last reset (see `stage.leftovers`)."""

    def start(self, scheduler: Scheduler, started: Started) -> None:
        """Store a Scheduler that has started."""
        self._scheduler, self._started = scheduler, started

    def started(self, scheduler: Scheduler) -> Started:
        """Return what belongs to the Scheduler started here; raises UsageError for another one."""
        if scheduler is not self._scheduler or self._started is None:
            raise UsageError(
                f"{type(scheduler).__name__} was not started by the fixture 'scheduler'"
            )
        return self._started

    def note_room(self, room: int, rid: str) -> None:
        """Record the bootstrap room of a request."""
        self._rooms[room] = rid

    def note_request(self, rid: str) -> None:
        """Record the id of a request that is sent."""
        self._rids.add(rid)

    def rids(self) -> Iterable[str]:
        """Return the ids of all requests that were sent; tests use the same ids again."""
        return self._rids

    def rooms(self) -> Iterable[int]:
        """Return all bootstrap rooms that were used."""
        return self._rooms

    def room(self, number: int) -> str:
        """Describe a room, with its request."""
        return f"room {number} of {self._rooms.get(number, 'nobody known')}"

    def note_forward(self, reqs: Iterable[Req], mode: str) -> None:
        """Record the requests of a batch that is about to run."""
        self._forwards.update({req.rid: (req, mode) for req in reqs})

    def forget_forwards(self) -> None:
        """Forget all requests, after a reset has released all that they owned."""
        self._forwards.clear()

    def seen_requests(self) -> list[Req]:
        """Return the Reqs that went through a forward since the last reset."""
        return [req for req, _ in self._forwards.values()]

    def holders(self) -> Iterator[str]:
        """Yield, in words, each recorded request that owns KV tokens or a request slot."""
        for rid, (req, mode) in self._forwards.items():
            slot, tokens = requests.slot_of(req), requests.allocated_tokens_of(req)
            if slot is None:
                continue
            reason = requests.finish_reason_of(req)
            end = f"finished ({reason})" if reason else "not finished"
            stack = self.book.slots.get(rid, ()) if self.book is not None else ()
            taken = f"; taken at {' < '.join(map(str, stack[:4]))}" if stack else ""
            yield (
                f"held by {rid}: request slot {slot}, {tokens} KV tokens of its own or locked; "
                f"last forward: {mode}; {end}, {len(req.output_ids)} output tokens{taken}"
            )


_here = Stage()


def this_stage() -> Stage:
    """Return this rank's stage."""
    return _here
