"""What one stage holds between two iterations, small enough to be told to the other stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat import scheduler as held
from pytest_pprank.sglang.compat.disagg import queues
from pytest_pprank.sglang.compat.requests import ends_by_abort
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.types import Forward

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, Scheduler


def first_difference(
    ran: Sequence[Sequence[Forward]], since: int, over: Sequence[int] = ()
) -> list[str]:
    """Return, in words by stage, the first forward from number `since` on which is not everywhere
    the same; empty where there is none. A stage may have run fewer than those before it, as long as
    the iteration is not among those that are over on it (`over`: how many are, by stage).
    """
    for number in range(since, max(len(forwards) for forwards in ran)):
        found = [forwards[number] if number < len(forwards) else None for forwards in ran]
        # none where an earlier stage has one: not yet; one where an earlier stage has none: wrong
        behind = list(itertools.dropwhile(lambda forward: forward is not None, found))
        first = min((forward.iteration for forward in found if forward), default=0)
        late = any(it is None and done > first for it, done in zip(found, over, strict=False))
        if late or any(behind) or len({forward for forward in found if forward is not None}) > 1:
            return [
                f"stage {stage}: {f'iteration {it.iteration}, {it}' if it else 'none'}"
                for stage, it in enumerate(found)
            ]
    return []


@dataclass(frozen=True)
class StageView:
    """One stage after some number of its iterations.

    `slots`: request ids by microbatch slot (one slot without pipeline parallelism): those in the
    batch whose result is awaited, and those that are running. `busy` says in words what keeps the
    stage from being idle. `progress` changes whenever a request gets anywhere. `in_grammar_queue`:
    those whose grammar is being compiled. `ending`: those that have been queued at some time,
    to be ended with the result of their next forward.
    """

    stage: int
    iterations: int
    waiting: tuple[str, ...]
    chunked: str | None
    slots: tuple[tuple[str, ...], ...]
    busy: tuple[str, ...]
    forwards: int
    progress: int
    in_grammar_queue: tuple[str, ...] = field(default=(), kw_only=True)
    ending: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def place(self) -> str:
        """Which stage this is, in words."""
        return f"stage {self.stage}"

    @property
    def more(self) -> str:
        """What else is told of this stage where something has gone wrong."""
        return ""

    @property
    def rids(self) -> frozenset[str]:
        """All requests that this stage holds."""
        slots = [rid for slot in self.slots for rid in slot]
        return frozenset([*self.waiting, *slots, *([self.chunked] if self.chunked else [])])

    def other_places(self, rid: str) -> tuple[str, ...]:
        """Return the names of the queues of its role, where it has some, that hold a request."""
        del rid
        return ()

    def transfers(self, rid: str) -> bool:
        """Whether the KV of a request is on its way between two roles."""
        del rid
        return False


def held_requests(scheduler: Scheduler) -> Iterator[Req]:
    """Yield the requests that this rank's Scheduler holds, some of them more than once."""
    yield from (req for reqs in queues(scheduler).values() for req in reqs)
    yield from (req for slot in _slots(scheduler) for req in slot)
    yield from (*scheduler.waiting_queue, *held.waiting_for_grammar(scheduler))
    if (chunked := held.chunked_request_of(scheduler)) is not None:
        yield chunked


def ending_requests(scheduler: Scheduler) -> Iterator[str]:
    """Yield the queued requests that SGLang ends with the result of their next forward."""
    retracted = queues(scheduler).get("retracted", ())
    queued = (*scheduler.waiting_queue, *held.waiting_for_grammar(scheduler), *retracted)
    yield from (req.rid for req in queued if ends_by_abort(req))


def view_stage(scheduler: Scheduler, stage: int, iterations: int, forwards: int) -> StageView:
    """Look at this rank's Scheduler, which must be between two iterations."""
    from pytest_pprank.sglang.stage.idle import busy_problems  # here: it imports torch

    slots = tuple(_slots(scheduler))
    chunked = held.chunked_request_of(scheduler)
    busy = tuple(busy_problems(scheduler))
    if not busy and not need(scheduler, "is_fully_idle")():
        busy = ("SGLang's is_fully_idle() says no",)
    reqs = {req.rid: req for slot in slots for req in slot}
    return StageView(
        stage=stage,
        iterations=iterations,
        waiting=tuple(req.rid for req in scheduler.waiting_queue),
        chunked=None if chunked is None else chunked.rid,
        slots=tuple(tuple(req.rid for req in slot) for slot in slots),
        busy=busy,
        forwards=forwards,
        progress=forwards + sum(len(req.output_ids) for req in reqs.values()),
        in_grammar_queue=tuple(req.rid for req in held.waiting_for_grammar(scheduler)),
    )


def _slots(scheduler: Scheduler) -> Iterable[tuple[Req, ...]]:
    for batches in held.microbatch_pairs(scheduler):
        reqs = {req.rid: req for batch in batches if batch is not None for req in batch.reqs}
        yield tuple(reqs.values())
