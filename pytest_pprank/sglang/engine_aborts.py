"""Aborts that are lost: the request goes on as if nobody had asked for its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_pprank.sglang.engine_messages import Result
from pytest_pprank.sglang.engine_views import Forward, StageView

_CAUSE = (
    "usual cause: Scheduler.abort_request does not look into the queue, batch or microbatch slot "
    "in which the request is"
)


class AbortLost(AssertionError):
    """A request that was aborted is run again and again."""


@dataclass
class _Aborted:
    result: Result
    tokens: int
    places: str
    forwards: int = 0


class AbortWatch:
    """Counts the forwards of aborted requests on the first stage of each role.

    `patience`: so many may be on their way, or begin before SGLang comes to the abort.
    """

    def __init__(self, num_stages: int) -> None:
        self._patience = 4 + 4 * num_stages
        self._aborted: dict[tuple[str, str], _Aborted] = {}

    def note(self, role: str, results: Iterable[Result], stages: Iterable[StageView]) -> None:
        """Note that an abort of these requests has been sent to the first stage of a role."""
        views = list(stages)
        for result in results:
            if not result.finished:
                places = "; ".join(_places(result.rid, views)) or "not come yet"
                aborted = _Aborted(result, len(result.token_ids), places)
                self._aborted.setdefault((role, result.rid), aborted)

    def ran(self, role: str, forwards: Iterable[Forward]) -> None:
        """Take in the forwards of the first stage of a role; raises AbortLost."""
        __tracebackhide__ = True
        if not self._aborted:
            return
        for forward in forwards:
            for rid in forward.rids:
                aborted = self._aborted.get((role, rid))
                if aborted is None or aborted.result.finished:
                    continue
                aborted.forwards += 1
                if aborted.forwards > self._patience:
                    del self._aborted[role, rid]
                    raise AbortLost(_words(aborted))


def _words(aborted: _Aborted) -> str:
    result = aborted.result
    return (
        f"the abort of {result.rid} was lost: {aborted.forwards} forwards of it since, and "
        f"{len(result.token_ids)} tokens came out, {aborted.tokens} before the abort\n"
        f"  where it was then: {aborted.places}\n  {_CAUSE}"
    )


def _places(rid: str, views: Iterable[StageView]) -> Iterator[str]:
    """Yield, in words, where each stage had a request after the last step."""
    for view in views:
        held = [f"microbatch slot {slot}" for slot, rids in enumerate(view.slots) if rid in rids]
        held += ["the waiting queue"] if rid in view.waiting else []
        held += ["in the middle of its prompt"] if rid == view.chunked else []
        if held:
            yield f"{view.place}: {', '.join(held)} (after {view.iterations} iterations)"
