"""Checks whether a Scheduler is idle, and resets it to its state after the start."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.devices.sim.untracked import untracked
from pytest_pprank.errors import PprankError
from pytest_pprank.oplog.file import SEND
from pytest_pprank.oplog.record.ledger import open_calls
from pytest_pprank.sglang.batches.build import restart_serial
from pytest_pprank.sglang.compat import pipeline
from pytest_pprank.sglang.compat import scheduler as compat_scheduler
from pytest_pprank.sglang.compat.pools import lists_its_tokens, request_slots_of
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.memory import token_pool
from pytest_pprank.sglang.stage.disagg_idle import (
    drop_transfers,
    queue_problems,
    transfer_problems,
)
from pytest_pprank.sglang.stage.event_loop import loop_is_running
from pytest_pprank.sglang.stage.leftovers import find
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler


def idle_problems(scheduler: Scheduler, *, failed_rooms: bool = False) -> list[str]:
    """Return, in words, all that is not idle or not balanced; empty if there is nothing.

    `failed_rooms`: whether failed rooms count (see `transfer_problems`).
    """
    return [*busy_problems(scheduler), *kv_problems(scheduler, failed_rooms=failed_rooms)]


def kv_problems(scheduler: Scheduler, *, failed_rooms: bool = False) -> list[str]:
    """Return, in words, memory that a Scheduler without requests has not got back.

    KV tokens: free + evictable in the tree cache must be the whole pool, and none may be locked.
    Request slots, metadata slots and rooms: all must be free. Lists the requests that still own
    something, if they were run by `engine` or `disagg`.
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
    taken, slots = request_slots(scheduler)
    if taken:
        problems.append(f"request slots: {taken} of {slots} were not given back")
    problems += transfer_problems(scheduler, failed_rooms=failed_rooms)
    return [*problems, *this_stage().holders(), *_taken(scheduler)] if problems else []


def _taken(scheduler: Scheduler) -> Iterator[str]:
    """Yield where memory still in use was allocated, if a book was kept (see kv_book)."""
    book, tree = this_stage().book, scheduler.tree_cache
    if book is None:
        return
    pool = token_pool(scheduler.token_to_kv_pool_allocator)
    if pool is not None and lists_its_tokens(tree):
        # up to 0.5.18 all_values_flatten fails for a tree without a node
        full = any(_tree_tokens(scheduler, kind) for kind in ("evictable", "protected"))
        with untracked():
            cached = tree.all_values_flatten().cpu().tolist() if full else ()
        yield from book.held_tokens(pool, cached)
    if _tree_tokens(scheduler, "protected"):
        yield from book.open_locks()


def free_tokens(scheduler: Scheduler) -> int:
    """Return how many KV tokens are free, not counting evictable ones in the tree cache."""
    return int(need(scheduler.token_to_kv_pool_allocator, "available_size")())


def request_slots(scheduler: Scheduler) -> tuple[int, int]:
    """Return how many request slots are in use, and how many exist.

    Decode has more slots than its batches need, for requests whose KV is arriving.
    """
    pool = need(scheduler, "req_to_token_pool")
    slots = request_slots_of(pool)
    return slots - int(pool.available_size()), slots


def reset_scheduler(scheduler: Scheduler) -> None:
    """Drop all requests and reset the Scheduler to its state after the start.

    That is: no requests, an empty cache, the seed, and the Scheduler's own plain values (numbers,
    strings, None, enums). Changes inside objects that it refers to (server_args, policy, ...) stay.
    Attributes that a test added stay until `drop_new_attributes`.
    Raises PprankError if SGLang itself does not consider the result idle.
    """
    vars(scheduler).update(this_stage().started(scheduler).attributes)
    _drop_requests(scheduler)
    if not need(scheduler, "flush_cache")():
        problems = "; ".join(idle_problems(scheduler)) or "SGLang's flush_cache refused"
        raise PprankError(f"the Scheduler could not be reset: {problems}")
    utils = import_module("sglang.srt.utils")
    need(utils, "set_random_seed")(scheduler.random_seed)
    compat_scheduler.reset_estimates(scheduler)
    scheduler.forward_ct = 0
    this_stage().forget_forwards()
    this_stage().leftovers = frozenset(find(scheduler))
    restart_serial()


def drop_new_attributes(scheduler: Scheduler) -> None:
    """Remove attributes that the Scheduler did not have after its start. Call before a test.

    Not part of the reset after a test: a fixture that is torn down later, such as pytest-mock's,
    deletes the attribute that it patched, and fails if the attribute is gone.
    """
    for name in vars(scheduler).keys() - this_stage().started(scheduler).names:
        delattr(scheduler, name)


def _drop_requests(scheduler: Scheduler) -> None:
    compat_scheduler.drop_batches(scheduler)
    drop_transfers(scheduler)
    # SGLang calls this at the start of each pipeline loop; flush_cache reads what it sets.
    need(scheduler, "init_pp_loop_state")()


def busy_problems(scheduler: Scheduler) -> Iterator[str]:
    """Yield, in words, work in the queues, batches and slots of a Scheduler or between stages."""
    waiting = [req.rid for req in need(scheduler, "waiting_queue")]
    if waiting:
        yield f"waiting queue: {len(waiting)} requests ({_some(waiting)})"
    for name, batch in compat_scheduler.batches_of(scheduler):
        yield f"{name}: {len(batch.reqs)} requests ({_some([r.rid for r in batch.reqs])})"
    if (chunked := compat_scheduler.chunked_request_of(scheduler)) is not None:
        yield f"chunked_req: {chunked.rid} is in the middle of its prompt"
    for name, batch in compat_scheduler.slots_of(scheduler):
        rids = _some([req.rid for req in batch.reqs])
        yield f"microbatch slot {name}: {len(batch.reqs)} requests ({rids})"
    if count := len(compat_scheduler.waiting_for_grammar(scheduler)):
        yield f"grammar queue: {count} requests"
    yield from queue_problems(scheduler)
    yield from _between_stages(scheduler)


def _between_stages(scheduler: Scheduler) -> Iterator[str]:
    """Yield, in words, messages that a pipeline's loop keeps for another microbatch or stage.

    Sends of requests do not count while a loop runs: the last ones are under way in each iteration.
    """
    for kind, count in pipeline.received_too_early(scheduler):
        yield f"received and not asked for: {count} messages of kind {kind!r}"
    if count := pipeline.results_not_sent(scheduler):
        yield f"last_rank_comm_queue: {count} results that were not sent"
    # the last sends of requests are under way in each iteration of a running loop
    idle_loop = () if loop_is_running() else (pipeline.REQUESTS,)
    for name in (pipeline.PROXIES, pipeline.OUTPUTS, *idle_loop):
        if work := pipeline.open_sends(scheduler, name):
            yield f"{name}: {len(work)} sends that were not waited for"
    if idle_loop and (calls := [call for call in open_calls() if call.way == SEND]):
        places = ", ".join(sorted({str(call.site) for call in calls})[:4])
        yield f"open send handles: {len(calls)}, issued at {places}"


def _tree_tokens(scheduler: Scheduler, what: str) -> int:
    """Return the tree cache's evictable or protected tokens, counted as SGLang's own check does.

    Ordinary caches count in ``evictable_size``; hybrid ones (SWA, SSM) in ``full_...``, which
    is 0 in the base class of the others.
    """
    kind = f"full_{what}_size" if compat_scheduler.is_hybrid(scheduler) else f"{what}_size"
    return int(need(scheduler.tree_cache, kind)())


def _some(rids: list[str]) -> str:
    return ", ".join(rids[:4]) + (", ..." if len(rids) > 4 else "")
