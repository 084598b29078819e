"""Accessors for the contents of a Scheduler between two iterations."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.seams import need


def is_scheduler(value: object) -> bool:
    """Return whether this is an SGLang Scheduler."""
    return hasattr(value, "token_to_kv_pool_allocator")


def chunked_request_of(scheduler: Any) -> Any:
    """Return the request that is in the middle of its prompt; None if there is none."""
    return getattr(scheduler, "chunked_req", None)


def microbatches_of(scheduler: Any) -> list[Any]:
    """Return the batches, or None, in the microbatch slots; empty without pipeline parallelism."""
    return list(getattr(scheduler, "mbs", None) or [])


def running_microbatches_of(scheduler: Any) -> list[Any]:
    """Return the running batch of each microbatch slot; empty without pipeline parallelism."""
    return list(getattr(scheduler, "running_mbs", None) or [])


def pending_requests(scheduler: Any) -> Iterator[Any]:
    """Yield requests that wait for a forward: queued, in the middle of a prompt, or running."""
    yield from scheduler.waiting_queue
    if (chunked := chunked_request_of(scheduler)) is not None:
        yield chunked
    for batch in (*running_microbatches_of(scheduler), scheduler.running_batch):
        if batch is not None:
            yield from (req for req in batch.reqs if not req.finished())


def batches_of(scheduler: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, batch) of each non-empty batch outside the microbatch slots."""
    for name in ("running_batch", "last_batch", "cur_batch"):
        batch = getattr(scheduler, name, None)
        if batch is not None and not batch.is_empty():
            yield name, batch


def slots_of(scheduler: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, batch) of each non-empty batch in a microbatch slot.

    A slot has up to two: the batch whose result is awaited, and the running batch.
    """
    slots = {"mbs": microbatches_of(scheduler), "running_mbs": running_microbatches_of(scheduler)}
    for name, batches in slots.items():
        for number, batch in enumerate(batches):
            if batch is not None and not batch.is_empty():
                yield f"{name}[{number}]", batch


def microbatch_pairs(scheduler: Any) -> list[tuple[Any, Any]]:
    """Return, by microbatch slot, the batch whose result is awaited and the running batch.

    Without pipeline parallelism there is one slot.
    """
    if awaited := microbatches_of(scheduler):
        return list(zip(awaited, running_microbatches_of(scheduler), strict=True))
    return [(scheduler.last_batch, scheduler.running_batch)]


def drop_batches(scheduler: Any) -> None:
    """Remove all batches, queued requests and the chunked request from a Scheduler."""
    batch_class = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    # in place: other components refer to the same list
    need(scheduler, "waiting_queue").clear()
    scheduler.running_batch = batch_class(reqs=[], batch_is_full=False)
    scheduler.last_batch = None
    for name in ("chunked_req", "_pending_chunked_abort_req", "cur_batch", "cur_batch_for_debug"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, None)
    if hasattr(scheduler, "result_queue"):
        scheduler.result_queue.clear()
    if waiting_for_grammar(scheduler):
        grammar_manager_of(scheduler).grammar_queue.clear()


def reset_estimates(scheduler: Any) -> None:
    """Reset the estimates that a Scheduler adapts at run time, if this SGLang has any."""
    tracker = getattr(scheduler, "new_token_ratio_tracker", None)
    if tracker is not None:
        tracker.reset()


def waiting_for_grammar(scheduler: Any) -> list[Any]:
    """Return the requests that wait for their grammar to be compiled."""
    return list(getattr(grammar_manager_of(scheduler), "grammar_queue", None) or ())


def grammar_manager_of(scheduler: Any) -> Any:
    """Return the object that compiles grammars; None if there is none."""
    return getattr(scheduler, "grammar_manager", None)


def is_hybrid(scheduler: Any) -> bool:
    """Return whether the tree cache is a hybrid of two kinds of layers (SWA, SSM)."""
    return bool(
        getattr(scheduler, "is_hybrid_swa", False) or getattr(scheduler, "is_hybrid_ssm", False)
    )
