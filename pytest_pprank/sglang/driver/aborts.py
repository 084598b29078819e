"""Detects aborts that are lost or late: a request that continues after its abort has arrived.

A message that is sent between two steps arrives in the next iteration of the first stage, and in
the iteration of the same number at every other stage, because each stage receives in iteration i
what the stage before it received in iteration i. From then on a stage may begin one more forward
of the request: the microbatch whose turn it is runs what it was already running, and SGLang ends
the request with the result of that forward. Every other slot gets the result that it waits for
before its next turn. So one turn of the pipeline later (as many iterations as there are microbatch
slots) no forward of the request begins any more. A slot that ran prompts of other requests in the
meantime is excepted, since SGLang prefers prompts.

There are two more exceptions. Each allows one forward, for which the request may have to wait:

- SGLang has replaced the request's prompt by a single token, to end the request with the result of
  that forward (a request that waited for its grammar).
- The request's KV was taken away in the iteration in which the abort arrived, and is recomputed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pytest_pprank.sglang.driver.messages import Result
from pytest_pprank.sglang.driver.views import StageView
from pytest_pprank.sglang.events.types import Forward

_CAUSE = (
    "usual cause: Scheduler.abort_request does not look into the queue, batch or microbatch slot "
    "in which the request is, or the event loop does not call process_pending_chunked_abort"
)
_GONE_AFTER = 4
"""Turns of the pipeline after which an aborted request may be in no queue of a Scheduler."""
_STUB = (0, 1)
"""The token range of a prompt that SGLang has replaced by a single token."""


class AbortLost(AssertionError):
    """A request continues after its abort has arrived."""


@dataclass
class _Aborted:
    """A request whose abort arrives in iteration `since` of each stage of `role`.

    `tokens`, `places`: how many output tokens it had when the abort was sent, and where it was, in
    words. `may_be_over`: its KV is being transferred, so it may finish before the abort takes
    effect. `in_time`: whether the abort ends its prompt, if it is in the middle of it. `begun`: the
    forwards that have begun since, in words, by stage.
    """

    role: str
    result: Result
    since: int
    tokens: int
    places: str
    may_be_over: bool
    in_time: bool
    begun: dict[int, list[str]] = field(default_factory=dict)


class AbortWatch:
    """Tracks aborted requests on every stage of each role."""

    def __init__(self) -> None:
        self._aborted: dict[tuple[str, str], _Aborted] = {}
        self._prompts: dict[str, set[int]] = defaultdict(set)
        """Iterations in which a stage (by its place, in words) has run prompts."""

    def note(
        self,
        role: str,
        results: Iterable[Result],
        stages: Iterable[StageView],
        since: int,
        in_time: bool = True,
    ) -> None:
        """Record that an abort of these requests arrives at a role's stages in iteration `since`.

        `in_time`: whether the abort ends the prompt of a request that is in the middle of it.
        """
        views = list(stages)
        for result in results:
            if result.finished:
                continue
            places = "; ".join(_places(result.rid, views)) or "not come yet"
            over = any(view.transfers(result.rid) for view in views)
            aborted = _Aborted(role, result, since, len(result.token_ids), places, over, in_time)
            self._aborted.setdefault((role, result.rid), aborted)

    def resume(self, role: str, since: int) -> None:
        """Record that a role has continued after a pause, during which no abort has to be late."""
        for aborted in self._aborted.values():
            if aborted.role == role:
                aborted.since = max(aborted.since, since)

    def clear(self) -> None:
        """Forget all requests: the loops have been left, and will count iterations from 0."""
        self._aborted.clear()
        self._prompts.clear()

    def ended(self, role: str, result: Result) -> None:
        """Record that a role has sent a request's final output.

        Raises AbortLost if the request was aborted and has finished for another reason.
        """
        __tracebackhide__ = True
        aborted = self._aborted.get((role, result.rid))
        if aborted is None or aborted.may_be_over or result.finish_reason is None:
            return
        reason = result.finish_reason.get("type")
        if reason != "abort":
            self._lost(aborted, f"it has finished by {reason!r}")

    def ran(self, role: str, view: StageView, forwards: Iterable[Forward]) -> None:
        """Record the forwards of one stage, and check its queues. Raises AbortLost."""
        __tracebackhide__ = True
        for forward in forwards if self._aborted else ():
            if forward.mode not in ("decode", "idle"):
                self._prompts[view.place].add(forward.iteration)
            for index, rid in enumerate(forward.rids):
                aborted = self._aborted.get((role, rid))
                if aborted is not None and forward.iteration >= aborted.since:
                    self._begun(aborted, view, forward, index)
        for rid in view.held:
            aborted = self._aborted.get((role, rid))
            if aborted is not None and rid not in view.ending:
                waited = view.iterations - aborted.since
                if waited > _GONE_AFTER * len(view.slots):
                    where = "; ".join(_places(rid, [view]))
                    self._lost(aborted, f"it is still there {waited} iterations later: {where}")

    def _begun(self, aborted: _Aborted, view: StageView, forward: Forward, index: int) -> None:
        __tracebackhide__ = True
        extend = forward.extends[index] if forward.extends else None
        shown = f"{forward.mode} in iteration {forward.iteration}"
        shown += f" (tokens {extend[0]}-{extend[1]})" if extend else ""
        if not aborted.in_time and extend and extend[1] <= len(aborted.result.prompt):
            return
        begun = aborted.begun.setdefault(view.number, [])
        begun.append(shown)
        earlier_turns = range(
            forward.iteration - len(view.slots), aborted.since - 1, -len(view.slots)
        )
        # an earlier turn of this slot since the abort could have run the forward, unless it ran
        # prompts of others
        late = any(turn not in self._prompts[view.place] for turn in earlier_turns)
        if len(begun) > 1 or (late and not _ends(aborted.result, extend, view)):
            self._lost(aborted, f"{view.place} has begun since: {', '.join(begun)}")

    def _lost(self, aborted: _Aborted, what: str) -> None:
        __tracebackhide__ = True
        result = aborted.result
        del self._aborted[aborted.role, result.rid]
        raise AbortLost(
            f"the abort of {result.rid} was lost, or is late: it arrived in iteration "
            f"{aborted.since}, and {what}; {len(result.token_ids)} tokens came out, "
            f"{aborted.tokens} before the abort\n"
            f"  where it was then: {aborted.places}\n  {_CAUSE}"
        )


def _ends(result: Result, extend: tuple[int, int] | None, view: StageView) -> bool:
    """Return whether this may be the extra forward with which SGLang ends an aborted request."""
    again = extend is None or extend == _STUB or extend[1] > len(result.prompt)
    return again and result.rid in view.ending


def _places(rid: str, views: Iterable[StageView]) -> Iterator[str]:
    """Yield, in words, where each stage had a request after the last step."""
    for view in views:
        held = [f"microbatch slot {slot}" for slot, rids in enumerate(view.slots) if rid in rids]
        held += ["the waiting queue"] if rid in view.waiting else []
        held += ["in the middle of its prompt"] if rid == view.chunked else []
        held += ["waiting for its grammar"] if rid in view.in_grammar_queue else []
        held += [f"{name} queue" for name in view.other_places(rid)]
        if held:
            yield f"{view.place}: {', '.join(held)} (after {view.iterations} iterations)"
