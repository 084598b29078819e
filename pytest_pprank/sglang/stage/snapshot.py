"""The state of a stage between two iterations, in words, for the trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_pprank.devices.sim.untracked import untracked
from pytest_pprank.sglang.compat import requests
from pytest_pprank.sglang.compat import scheduler as compat_scheduler
from pytest_pprank.sglang.compat.disagg import queues, rooms
from pytest_pprank.sglang.stage.idle import free_tokens, request_slots
from pytest_pprank.trace.file import Detail

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, ScheduleBatch, Scheduler


def snapshot(scheduler: Scheduler) -> dict[str, Detail]:
    """Return queues, microbatch slots, and the memory held by each request."""
    with untracked():  # reading sizes of tensors must not change their order on the device
        state: dict[str, Detail] = {"waiting": _rids(scheduler.waiting_queue)}
        for name, reqs in queues(scheduler).items():
            state[f"queue {name}"] = _rids(reqs)
        if grammar := compat_scheduler.waiting_for_grammar(scheduler):
            state["waiting for a grammar"] = _rids(grammar)
        chunked = compat_scheduler.chunked_request_of(scheduler)
        state["in the middle of its prompt"] = None if chunked is None else chunked.rid
        pairs = compat_scheduler.microbatch_pairs(scheduler)
        for number, (awaited, running) in enumerate(pairs):
            state[f"slot {number}"] = f"awaits {_batch(awaited)}; runs {_batch(running)}"
        total = int(scheduler.token_to_kv_pool_allocator.size)
        state["KV tokens in use"] = f"{total - free_tokens(scheduler)} of {total}"
        taken, slots = request_slots(scheduler)
        state["request slots in use"] = f"{taken} of {slots}"
        state["held by request"] = _held(scheduler)
        if known := rooms(scheduler):
            state["rooms"] = [f"room {room}: {status}" for room, status in known.items()]
    return state


def _rids(reqs: Iterable[Req]) -> list[str]:
    return [req.rid for req in reqs]


def _batch(batch: ScheduleBatch | None) -> str:
    if batch is None or batch.is_empty():
        return "nothing"
    mode = batch.forward_mode
    shown = "no mode" if mode is None else mode.name.lower()
    return f"{', '.join(req.rid for req in batch.reqs)} ({shown})"


def _held(scheduler: Scheduler) -> list[str]:
    from pytest_pprank.sglang.driver.views import requests_on_stage

    held = {}
    for req in requests_on_stage(scheduler):
        slot = requests.slot_of(req)
        if slot is not None:
            tokens = requests.allocated_tokens_of(req)
            held[req.rid] = f"{req.rid}: slot {slot}, {tokens} KV tokens"
    return list(held.values())
