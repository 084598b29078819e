"""Say what keeps a Scheduler from being idle, and bring it back to the state after its start."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pytest_pprank.devices.sim import looking
from pytest_pprank.errors import PprankError
from pytest_pprank.sglang.batches import restart_serial
from pytest_pprank.sglang.disagg_idle import drop_transfers, queue_problems, transfer_problems
from pytest_pprank.sglang.engine_loop import loop_is_running
from pytest_pprank.sglang.events.memory import token_pool
from pytest_pprank.sglang.holders import forget_forwards, holders
from pytest_pprank.sglang.kv_book import current_book
from pytest_pprank.sglang.scheduler import started
from pytest_pprank.sglang.seams import need
from pytest_pprank.wire.ledger_file import SEND
from pytest_pprank.worker.ledger import open_calls


def idle_problems(scheduler: Any, *, failed_rooms: bool = False) -> list[str]:
    """Return, in words, all that is not idle or not balanced; empty when there is nothing.

    `failed_rooms`: whether rooms that have failed count (see `transfer_problems`).
    """
    return [*busy_problems(scheduler), *kv_problems(scheduler, failed_rooms=failed_rooms)]


def kv_problems(scheduler: Any, *, failed_rooms: bool = False) -> list[str]:
    """Return what a Scheduler without requests should have got back and has not.

    Tokens: free + evictable in the tree cache must be the whole pool, nothing locked. Request
    slots, metadata slots and rooms: all free. With the requests that hold something, as far as
    `engine` or `disagg` has run them.
    """
    problems = []
    total = int(need(scheduler.token_to_kv_pool_allocator, "size"))
    free, evictable = free_tokens(scheduler), _tree_tokens(scheduler, "evictable")
    locked = _tree_tokens(scheduler, "protected")
    if free + evictable != total:
        problems.append(
            f"KV pool: {total - free - evictable} of {total} tokens were not given back "
            f"({free} free, {evictable} evictable, {locked} locked)"
        )
    elif locked:
        problems.append(f"tree cache: {locked} tokens are still locked by a request")
    held, slots = request_slots(scheduler)
    if held:
        problems.append(f"request slots: {held} of {slots} were not given back")
    problems += transfer_problems(scheduler, failed_rooms=failed_rooms)
    return [*problems, *holders(scheduler), *_taken(scheduler)] if problems else []


def _taken(scheduler: Any) -> Iterator[str]:
    """Yield where what is held was taken, as far as a book was kept (see kv_book)."""
    book, tree = current_book(), scheduler.tree_cache
    if book is None:
        return
    pool = token_pool(scheduler.token_to_kv_pool_allocator)
    if pool is not None and hasattr(tree, "all_values_flatten"):
        # up to 0.5.18 it fails for a tree without a node
        full = any(_tree_tokens(scheduler, kind) for kind in ("evictable", "protected"))
        with looking():
            cached = tree.all_values_flatten().cpu().tolist() if full else ()
        yield from book.held_tokens(pool, cached)
    if _tree_tokens(scheduler, "protected"):
        yield from book.open_locks()


def free_tokens(scheduler: Any) -> int:
    """Return how many KV tokens are free (those that the tree cache could evict not counted)."""
    return int(need(scheduler.token_to_kv_pool_allocator, "available_size")())


def request_slots(scheduler: Any) -> tuple[int, int]:
    """Return how many request slots are held, and how many there are.

    Decode has more than its batches take: for requests whose KV is on its way.
    """
    pool = need(scheduler, "req_to_token_pool")
    slots = int(need(pool, "size")) + int(getattr(pool, "pre_alloc_size", 0))
    return slots - int(pool.available_size()), slots


def reset_scheduler(scheduler: Any) -> None:
    """Drop all requests and bring the Scheduler back to the state after its start.

    That is: no requests, an empty cache, the seed, and the Scheduler's own plain values (numbers,
    strings, None, enums); what a test changes inside the objects it holds (server_args, policy,
    ...) stays. Attributes that a test added stay until `drop_new_attributes`.
    Raises PprankError when SGLang itself refuses to call the result idle.
    """
    vars(scheduler).update(started(scheduler).attributes)
    _drop_requests(scheduler)
    if not need(scheduler, "flush_cache")():
        problems = "; ".join(idle_problems(scheduler)) or "SGLang's flush_cache refused"
        raise PprankError(f"the Scheduler could not be reset: {problems}")
    utils = import_module("sglang.srt.utils")
    need(utils, "set_random_seed")(scheduler.random_seed)
    tracker = getattr(scheduler, "new_token_ratio_tracker", None)
    if tracker is not None:
        tracker.reset()
    scheduler.forward_ct = 0
    forget_forwards(scheduler)
    restart_serial()


def drop_new_attributes(scheduler: Any) -> None:
    """Remove the attributes that the Scheduler did not have after its start: call before a test.

    Not part of the reset after a test: a fixture that is torn down later, such as pytest-mock's,
    deletes the attribute that it patched, and fails when that is gone.
    """
    for name in vars(scheduler).keys() - started(scheduler).names:
        delattr(scheduler, name)


def _drop_requests(scheduler: Any) -> None:
    batch_class = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    # in place: other components hold this list
    need(scheduler, "waiting_queue").clear()
    scheduler.running_batch = batch_class(reqs=[], batch_is_full=False)
    scheduler.last_batch = None
    for name in ("chunked_req", "_pending_chunked_abort_req", "cur_batch", "cur_batch_for_debug"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, None)
    if hasattr(scheduler, "result_queue"):
        scheduler.result_queue.clear()
    drop_transfers(scheduler)
    # SGLang calls it at the start of each pipeline loop; flush_cache reads what it sets.
    need(scheduler, "init_pp_loop_state")()


def busy_problems(scheduler: Any) -> Iterator[str]:
    """Yield, in words, what a Scheduler has in a queue, a batch, a slot or between two stages."""
    waiting = [req.rid for req in need(scheduler, "waiting_queue")]
    if waiting:
        yield f"waiting queue: {len(waiting)} requests ({_some(waiting)})"
    for name in ("running_batch", "last_batch", "cur_batch"):
        batch = getattr(scheduler, name, None)
        if batch is not None and not batch.is_empty():
            yield f"{name}: {len(batch.reqs)} requests ({_some([r.rid for r in batch.reqs])})"
    if getattr(scheduler, "chunked_req", None) is not None:
        yield f"chunked_req: {scheduler.chunked_req.rid} is in the middle of its prompt"
    for name in ("mbs", "running_mbs"):
        for slot, batch in enumerate(getattr(scheduler, name, None) or []):
            if batch is not None and not batch.is_empty():
                rids = _some([req.rid for req in batch.reqs])
                yield f"microbatch slot {name}[{slot}]: {len(batch.reqs)} requests ({rids})"
    queue = getattr(getattr(scheduler, "grammar_manager", None), "grammar_queue", None)
    if queue:
        yield f"grammar queue: {len(queue)} requests"
    yield from queue_problems(scheduler)
    yield from _between_stages(scheduler)


def _between_stages(scheduler: Any) -> Iterator[str]:
    """Yield what a pipeline's loop has in its hands for another microbatch or another stage.

    Not the requests that it passes on: of these the last ones are on their way in each iteration.
    """
    for kind, messages in (getattr(scheduler, "_pp_tensor_dict_inbox", None) or {}).items():
        if messages:
            yield f"received and not asked for: {len(messages)} messages of kind {kind!r}"
    if results := getattr(scheduler, "last_rank_comm_queue", None):
        yield f"last_rank_comm_queue: {len(results)} results that were not sent"
    # those of requests: of these the last ones are on their way in each iteration
    idle_loop = () if loop_is_running() else ("send_req_work",)
    for name in ("send_proxy_work", "send_output_work", *idle_loop):
        if work := getattr(scheduler, name, None):
            yield f"{name}: {len(work)} sends that were not waited for"
    if idle_loop and (calls := [call for call in open_calls() if call.way == SEND]):
        places = ", ".join(sorted({str(call.site) for call in calls})[:4])
        yield f"open send handles: {len(calls)}, issued at {places}"


def _tree_tokens(scheduler: Any, what: str) -> int:
    """Return the tree cache's evictable or protected tokens, counted as SGLang's own check does.

    Caches of one kind count in ``evictable_size``; hybrid ones (SWA, SSM) in ``full_...``, which
    is 0 in the base class of the others.
    """
    hybrid = getattr(scheduler, "is_hybrid_swa", False) or getattr(
        scheduler, "is_hybrid_ssm", False
    )
    return int(need(scheduler.tree_cache, f"full_{what}_size" if hybrid else f"{what}_size")())


def _some(rids: list[str]) -> str:
    return ", ".join(rids[:4]) + (", ..." if len(rids) > 4 else "")
