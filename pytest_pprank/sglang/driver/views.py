"""A view of one stage between two iterations, small enough to send to the other stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat import scheduler as compat_scheduler
from pytest_pprank.sglang.compat.disagg import queues
from pytest_pprank.sglang.compat.requests import ends_by_abort
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.types import Forward
from pytest_pprank.words import place_in_role

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, Scheduler


def first_difference(
    ran: Mapping[str, Sequence[Forward]], since: int, over: Sequence[int] = ()
) -> list[str]:
    """Return the first forward, from number `since` on, that differs between the ranks of a role.

    `ran`: the forwards of each rank, by its place in words, in the order of the stages. `over`: how
    many iterations each has completed. A stage may have run fewer forwards than the stages before
    it, unless it has already completed the iteration of the missing one. Returns one line per rank;
    empty if there is no difference.
    """
    for number in range(since, max(map(len, ran.values()))):
        found = [forwards[number] if number < len(forwards) else None for forwards in ran.values()]
        # missing where an earlier stage has one: not run yet; the other way round: a difference
        behind = list(itertools.dropwhile(lambda forward: forward is not None, found))
        first = min((forward.iteration for forward in found if forward), default=0)
        late = any(it is None and done > first for it, done in zip(found, over, strict=False))
        if late or any(behind) or len({forward for forward in found if forward is not None}) > 1:
            return [
                f"{place}: {f'iteration {it.iteration}, {it}' if it else 'none'}"
                for place, it in zip(ran, found, strict=True)
            ]
    return []


@dataclass(frozen=True)
class StageView:
    """One stage after some number of its iterations.

    `slots`: request ids by microbatch slot (one slot without pipeline parallelism): those in the
    batch whose result is awaited, and those that are running. `busy`: in words, what keeps the
    stage from being idle. `progress`: a number that changes whenever a request advances.
    `in_grammar_queue`: requests whose grammar is being compiled. `ending`: requests that were
    queued at some time to be ended with the result of their next forward. `tp_rank`, `tp_size`:
    which of the stage's ranks this is; `dp_rank`, `dp_size`: which of its DP ranks it belongs to.
    `memory`: KV tokens and request slots in use, where a stage has several ranks.
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
    tp_rank: int = field(default=0, kw_only=True)
    tp_size: int = field(default=1, kw_only=True)
    dp_rank: int = field(default=0, kw_only=True)
    dp_size: int = field(default=1, kw_only=True)
    memory: tuple[int, int] = field(default=(0, 0), kw_only=True)

    @property
    def number(self) -> int:
        """The number of this rank in its role; that of the stage if the stage has one rank."""
        return self.stage * self.tp_size + self.tp_rank

    @property
    def label(self) -> str:
        """The number of this stage, in words, and of this rank if the stage has several."""
        tp, dp = (self.tp_rank, self.tp_size), (self.dp_rank, self.dp_size)
        return place_in_role(stage=(self.stage, self.stage + 1), tp=tp, dp=dp)

    @property
    def leads(self) -> bool:
        """Whether this is the first of the ranks that hold the same requests."""
        return self.tp_rank * self.dp_size % self.tp_size == 0

    @property
    def place(self) -> str:
        """The `label`, with the role if there are several."""
        return self.label

    @property
    def more(self) -> str:
        """More about this stage for error messages, in words."""
        return ""

    @property
    def rids(self) -> frozenset[str]:
        """All requests on this stage."""
        slots = [rid for slot in self.slots for rid in slot]
        return frozenset([*self.waiting, *slots, *([self.chunked] if self.chunked else [])])

    @property
    def held(self) -> tuple[str, ...]:
        """Requests in a queue from which SGLang can remove them at once, without any other role."""
        chunked = [self.chunked] if self.chunked else []
        return (*self.waiting, *chunked, *self.in_grammar_queue)

    def other_places(self, rid: str) -> tuple[str, ...]:
        """Return the names of the role's own queues, if it has any, that contain a request."""
        del rid
        return ()

    def transfers(self, rid: str) -> bool:
        """Return whether the KV of a request is being transferred between two roles."""
        del rid
        return False


def requests_on_stage(scheduler: Scheduler) -> Iterator[Req]:
    """Yield the requests of this rank's Scheduler; a request may occur more than once."""
    yield from (req for reqs in queues(scheduler).values() for req in reqs)
    yield from (req for slot in _slots(scheduler) for req in slot)
    yield from (*scheduler.waiting_queue, *compat_scheduler.waiting_for_grammar(scheduler))
    if (chunked := compat_scheduler.chunked_request_of(scheduler)) is not None:
        yield chunked


def ending_requests(scheduler: Scheduler) -> Iterator[str]:
    """Yield the queued requests that SGLang will end with the result of their next forward."""
    retracted = queues(scheduler).get("retracted", ())
    queued = (
        *scheduler.waiting_queue,
        *compat_scheduler.waiting_for_grammar(scheduler),
        *retracted,
    )
    yield from (req.rid for req in queued if ends_by_abort(req))


def view_stage(scheduler: Scheduler, stage: int, iterations: int, forwards: int) -> StageView:
    """Return a view of this rank's Scheduler, which must be between two iterations."""
    from pytest_pprank.sglang.stage.idle import busy_problems  # here: it imports torch

    slots = tuple(_slots(scheduler))
    chunked = compat_scheduler.chunked_request_of(scheduler)
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
        in_grammar_queue=tuple(req.rid for req in compat_scheduler.waiting_for_grammar(scheduler)),
    )


def _slots(scheduler: Scheduler) -> Iterable[tuple[Req, ...]]:
    for batches in compat_scheduler.microbatch_pairs(scheduler):
        reqs = {req.rid: req for batch in batches if batch is not None for req in batch.reqs}
        yield tuple(reqs.values())
