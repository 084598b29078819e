"""Polls of prefill that are answered otherwise, where the stages agree through a PPConsensusStore.

From SGLang 0.5.22 on only the first stage asks whether a room is ready: its own table and what the
other stages have told it (see `compat.consensus`). So what another stage is to hear late, or
otherwise, is told to the first stage late, or otherwise; asked once in each of its iterations for
each request that waits for its handshake, as the stages of a ring ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_pprank.sglang.compat.consensus import is_store, rooms_here
from pytest_pprank.sglang.compat.disagg import kv_manager, poll_class, role_of
from pytest_pprank.sglang.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.disagg_faults import Fault

Answer = Callable[[int, Any], Any]


def answer_store(scheduler: Any, fault: Fault, answer: Answer) -> None:
    """Have each question for a room's status on this stage of prefill answered by
    ``answer(room, status)``, as far as it goes through a store; nothing where it does not.
    """
    if role_of(scheduler) != "prefill":
        return
    store = need(kv_manager(scheduler), "request_status")
    if not is_store(store):
        return
    if need(store, "_pp_rank") == 0:
        _answer_first(store, fault, answer)
    else:
        _Teller(scheduler, store, fault, answer).begin()


def _answer_first(store: Any, fault: Fault, answer: Answer) -> None:
    def wrap(collect: Any) -> Any:
        def collect_and_answer(room: Any) -> list[Any]:
            own, *others = collect(room)
            return [own if own is None else answer(room, own), *others]

        return collect_and_answer

    fault.replace(store, "collect", wrap)


class _Teller:
    """Tells the first stage, once an iteration, what this stage is to have heard of its rooms."""

    def __init__(self, scheduler: Any, store: Any, fault: Fault, answer: Answer) -> None:
        self._scheduler = scheduler
        self._store = store
        self._fault = fault
        self._answer = answer
        self._poll = poll_class()
        self._lock = threading.Lock()
        self._kept: dict[int, Any] = {}
        """Rooms whose status the first stage does not know yet; the manager's threads add to it."""

    def begin(self) -> None:
        """Take the place of the store's own messages until the fault is released."""
        self._fault.replace(self._store, "_maybe_replicate_to_rank0", self._wrap)
        self._fault.each_iteration.append(self._tell)
        self._fault.afterwards(self._tell_all)

    def _wrap(self, replicate: Any) -> Any:
        self._replicate = replicate

        def keep(kind: Any, room: Any, value: Any = None) -> None:
            put = value is not None
            ready = put and value not in (self._poll.Bootstrapping, self._poll.Failed)
            with self._lock:
                if ready and not self._fault.over.is_set():
                    self._kept[room] = (kind, value)
                    return
                self._kept.pop(room, None)
            replicate(kind, room, value)

        return keep

    def _tell(self) -> None:
        for room, status in self._asked():
            told = self._answer(room, status)
            with self._lock:
                if told == status and room in self._kept:
                    kind, value = self._kept.pop(room)
                    self._replicate(kind, room, value)

    def _asked(self) -> Iterator[tuple[int, Any]]:
        """Yield room and true status of each request that waits for its handshake here."""
        known = rooms_here(self._store)
        queue = need(self._scheduler, "disagg_prefill_bootstrap_queue").queue
        for room in [int(req.bootstrap_room) for req in queue]:
            if room in known:
                yield room, known[room]

    def _tell_all(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, {}
        for room, (kind, value) in kept.items():
            self._replicate(kind, room, value)
