"""Finds requests that make no progress although there is room for them."""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.sglang.events.types import BatchScheduled, ForwardMade, Pending

PATIENCE = 64
"""Iterations of the event loop per microbatch slot; no correct scheduling needs as many."""
_CURE = "a request that was admitted must be in some queue or batch that the event loop looks at"


class Liveness(Sanitizer):
    """Counts for how many schedulings in a row each request was left out although it would fit."""

    name: ClassVar[str] = "liveness"

    def begin(self) -> None:
        self._passed_over: dict[str, int] = {}
        self.watch.listen("init_new", self._run)
        self.watch.listen("schedule", self._schedule)

    def _run(self, event: ForwardMade) -> None:
        for rid in event.forward.rids:
            self._passed_over.pop(rid, None)

    def _schedule(self, event: BatchScheduled) -> None:
        pending = {request.rid: request for request in event.pending}
        self._passed_over = {
            rid: self._passed_over.get(rid, 0) + 1
            for rid, request in pending.items()
            if _room(event, request)
        }
        for rid, turns in self._passed_over.items():
            if turns == PATIENCE * event.slots:
                self.watch.report(
                    f"{rid} has not been in a forward for {turns} iterations, and there is room: "
                    f"{event.free_tokens} KV tokens and {event.free_request_slots} request slots "
                    "are free",
                    (),
                    _CURE,
                )


def _room(event: BatchScheduled, request: Pending) -> bool:
    """Return whether there is so much room that no estimate of SGLang's could refuse it."""
    # a free slot besides those of running requests, and half of all KV
    enough = max(2 * request.most_tokens, event.total_tokens // 2)
    return event.free_request_slots > 0 and event.free_tokens > enough
