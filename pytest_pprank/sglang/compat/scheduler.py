"""What a Scheduler holds between two iterations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def is_scheduler(value: object) -> bool:
    """Whether this is SGLang's Scheduler."""
    return hasattr(value, "token_to_kv_pool_allocator")


def chunked_request_of(scheduler: Any) -> Any:
    """Return the request that is half-way in its prompt, None without one."""
    return getattr(scheduler, "chunked_req", None)


def microbatches_of(scheduler: Any) -> list[Any]:
    """Return the batches, or None, in the microbatch slots; empty without pipeline parallelism."""
    return list(getattr(scheduler, "mbs", None) or [])


def running_microbatches_of(scheduler: Any) -> list[Any]:
    """Return what runs in each microbatch slot; empty without pipeline parallelism."""
    return list(getattr(scheduler, "running_mbs", None) or [])


def pending_requests(scheduler: Any) -> Iterator[Any]:
    """Yield the requests that wait for a forward: queued, half-way in a prompt, or running."""
    yield from scheduler.waiting_queue
    if (chunked := chunked_request_of(scheduler)) is not None:
        yield chunked
    for batch in (*running_microbatches_of(scheduler), scheduler.running_batch):
        if batch is not None:
            yield from (req for req in batch.reqs if not req.finished())


def kv_pool_of(runner: Any) -> Any:
    """Return the KV pool of a ModelRunner, None where it has none of its own."""
    return getattr(runner, "token_to_kv_pool", None)
