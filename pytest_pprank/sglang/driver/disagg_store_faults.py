"""Faults of prefill rooms, late or lost, if the stages agree through a PPConsensusStore.

From SGLang 0.5.22 on only the first stage decides whether a room is ready, from its own table and
from what the other stages have reported of theirs (see `compat.consensus`). To make a stage learn
late that a room is ready, the fault delays the entry in that stage's table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.consensus import is_store, rooms_here
from pytest_pprank.sglang.compat.disagg import kv_manager, poll_class, role_of
from pytest_pprank.sglang.compat.requests import room_of
from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler
    from pytest_pprank.sglang.driver.disagg_faults import Fault

Answer = Callable[[int, object], object]
Method = Callable[..., object]


def agrees_by_store(scheduler: Scheduler) -> bool:
    """Return whether this Scheduler is one of prefill whose stages agree through a store."""
    if role_of(scheduler) != "prefill":
        return False
    return is_store(need(kv_manager(scheduler), "request_status"))


def lose_when_ready(scheduler: Scheduler, fault: Fault, lose: Callable[[int], None]) -> None:
    """Call ``lose(room)`` for each ready room of this stage at the end of an iteration, which is
    before the first stage has decided on the room.
    """
    manager, ready = kv_manager(scheduler), poll_class().WaitingForInput

    def look() -> None:
        known = rooms_here(need(manager, "request_status"))
        for room in known if not fault.over.is_set() else ():
            if known[room] == ready:
                lose(room)

    fault.each_iteration.append(look)


def lose_before_start(scheduler: Scheduler, fault: Fault, lose: Callable[[int], None]) -> None:
    """Call ``lose(room)`` for each ready room of this stage once the first stage has decided on it.

    Other stages lose it before they act on the decision, the first stage after it has acted.
    """
    queue, manager = need(scheduler, "disagg_prefill_bootstrap_queue"), kv_manager(scheduler)
    first, ready = need(queue, "pp_rank") == 0, poll_class().WaitingForInput

    def lose_ready() -> None:
        known = rooms_here(need(manager, "request_status"))
        waiting = [room_of(req) for req in queue.queue]
        for room in waiting if not fault.over.is_set() else ():
            if known.get(room) == ready:
                lose(room)

    def wrap(pop: Method) -> Method:
        def pop_and_lose(*args: object, **kwargs: object) -> object:
            before = [room_of(req) for req in queue.queue]
            if not first:
                lose_ready()
            popped = pop(*args, **kwargs)
            for room in before if first and not fault.over.is_set() else ():
                lose(room)
            return popped

        return pop_and_lose

    fault.replace(queue, "pop_bootstrapped", wrap)


def ready_late(scheduler: Scheduler, fault: Fault, answer: Answer) -> None:
    """Keep the status "ready" of a room out of this stage's table until the answer allows it.

    ``answer(room, status)`` is asked in each iteration. The status is entered when the answer is
    the status itself, or when the fault is over.
    """
    manager, states = kv_manager(scheduler), poll_class()
    begun, ready = states.Bootstrapping, states.WaitingForInput
    kept: dict[int, Method] = {}
    lock = threading.Lock()  # the KV manager's threads write to its table

    def wrap(update: Method) -> Method:
        def update_late(room: int, status: object) -> None:
            with lock:
                if status != begun:  # SGLang does not let a room go back to that state
                    kept.pop(room, None)  # a later status replaces the delayed one
                if status == ready and answer(room, status) != status:
                    kept[room] = update
                    status = begun  # an abort that comes next must find the room, not a gap
            update(room, status)

        return update_late

    def report_due() -> None:
        with lock:
            due = [room for room in kept if answer(room, ready) == ready]
            news = [(kept.pop(room), room) for room in due]
        for update, room in news:
            update(room, ready)

    fault.on_release(report_due)
    fault.replace(manager, "update_status", wrap)
    fault.each_iteration.append(report_due)
