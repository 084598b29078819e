"""A request that gets nowhere although there is room for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pytest_pprank.sanitizers.base import Sanitizer

PATIENCE = 64
"""Turns of the event loop for each microbatch slot; no sound scheduling needs so many."""
_CURE = "a request that was admitted must be in some queue or batch that the event loop looks at"


class Liveness(Sanitizer):
    """Counts, at each look for something to run, how long each request has been passed over."""

    name: ClassVar[str] = "liveness"

    def begin(self) -> None:
        self._passed_over: dict[str, int] = {}
        self.watch.listen("init_new", self._run)
        self.watch.listen("schedule", self._schedule)

    def _run(self, passage: Any) -> None:
        for req in passage.argument(1, "batch").reqs:
            self._passed_over.pop(req.rid, None)

    def _schedule(self, passage: Any) -> None:
        scheduler = passage.args[0]
        held = {req.rid: req for req in _held(scheduler)}
        self._passed_over = {
            rid: self._passed_over.get(rid, 0) + 1
            for rid, req in held.items()
            if _room(scheduler, req)
        }
        slots = len(getattr(scheduler, "mbs", None) or [1])
        for rid, turns in self._passed_over.items():
            if turns == PATIENCE * slots:
                self.watch.report(
                    f"{rid} has not been in a forward for {turns} iterations, and there is room: "
                    f"{scheduler.token_to_kv_pool_allocator.available_size()} KV tokens and "
                    f"{scheduler.req_to_token_pool.available_size()} request slots are free",
                    (),
                    _CURE,
                )


def _held(scheduler: Any) -> Iterable[Any]:
    """Return the requests that wait for a forward: queued, half-way in a prompt, or running."""
    yield from scheduler.waiting_queue
    if getattr(scheduler, "chunked_req", None) is not None:
        yield scheduler.chunked_req
    slots = getattr(scheduler, "running_mbs", None) or []
    for batch in (*slots, scheduler.running_batch):
        if batch is not None:
            yield from (req for req in batch.reqs if not req.finished())


def _room(scheduler: Any, req: Any) -> bool:
    """Whether there is so much room that no estimate of SGLang's could refuse it."""
    pool = scheduler.token_to_kv_pool_allocator
    wanted = len(req.origin_input_ids) + int(req.sampling_params.max_new_tokens or 0)
    # a slot for each of those that run already, and half of all KV
    slots = scheduler.req_to_token_pool.available_size()
    return bool(slots) and pool.available_size() > max(2 * wanted, pool.size // 2)
