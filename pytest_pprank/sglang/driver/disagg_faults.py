"""Faults between prefill and decode, injected where SGLang calls or polls its transfer engine.

SGLang's objects stay in place: a fault wraps their methods on this rank for one test.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.lifecycle import Cleanups, Lifecycle
from pytest_pprank.rank.patches import patch
from pytest_pprank.sglang.compat.disagg import (
    deferred_release,
    kv_manager,
    poll_class,
    role_of,
)
from pytest_pprank.sglang.compat.seams import missing, need
from pytest_pprank.sglang.driver.disagg_store_faults import (
    Answer,
    Method,
    agrees_by_store,
    lose_before_start,
    lose_when_ready,
    ready_late,
)
from pytest_pprank.trace.file import FAULT
from pytest_pprank.trace.record.trace import note

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler, SglangObject

_UNBLOCK_S = 10.0
"""How long `release` waits for transfers that were blocked, in seconds."""

_SENDS = ("batch_transfer_sync", "transfer_sync")
"""Methods of SGLang's wrapper of Mooncake's engine that move KV; each blocks until it is done."""


class Fault(Lifecycle):
    """A fault that is active on some stages; the same object on all ranks.

    `hits`: how often it has struck on this rank so far. `release()` ends it on this rank (so call
    it on all ranks), and returns when the transfers that it blocked are complete. The end of the
    test releases it, too.
    """

    def __init__(self, iterations: int | None = None, name: str = "fault") -> None:
        self.hits = 0
        self._name = name
        self.count = 0
        """Iterations of this stage since the fault became active."""
        self.over = threading.Event()
        self.each_iteration: list[Callable[[], None]] = []
        """Called in the loop's thread after each iteration of this stage."""
        self._change = threading.Condition()
        self._blocked: set[int] = set()
        """Threads that were blocked and have not completed their transfer since."""
        self._iterations = iterations
        self._first = 0
        self._undo = Cleanups()
        self._restores: list[Callable[[], bool]] = []

    def hit(self) -> None:
        """Record that the fault has struck; its number of iterations counts from the first time."""
        self._first = self.count if not self.hits else self._first
        self.hits += 1
        note(FAULT, self._name, {"times": self.hits})

    def iteration(self, number: int) -> None:  # noqa: ARG002  (it counts from its own start)
        """Count an iteration of this stage; after its last one the fault is over."""
        self.count += 1
        limit = self._iterations
        if limit is not None and self.hits and self.count - self._first > limit:
            self.over.set()
        self._wake()
        for action in self.each_iteration:
            action()

    def block_for(self, iterations: int) -> None:
        """Block this thread until this stage has done `iterations` more, or the fault is over.

        Must not be called in the loop's thread, which would wait for itself.
        """
        until = self.count + iterations
        with self._change:
            self._change.wait_for(lambda: self.count >= until or self.over.is_set())

    def block(self) -> None:
        """Block this thread, which belongs to the transfer engine, until the fault is over."""
        with self._change:
            self._blocked.add(threading.get_ident())
        self.over.wait()

    def unblock(self) -> None:
        """Record that this thread has completed the transfer in which it was blocked."""
        with self._change:
            self._blocked.discard(threading.get_ident())
            self._change.notify_all()

    def sent(self) -> None:
        """Record that this thread has sent something.

        Roles with different numbers of ranks per stage send layers in threads of a pool, which do
        not come back to the queue of transfers.
        """
        if threading.current_thread().name.startswith("ThreadPoolExecutor"):
            self.unblock()

    def _wake(self) -> None:
        with self._change:
            self._change.notify_all()

    def release(self) -> None:
        """End the fault on this rank."""
        self.over.set()
        self._wake()
        with self._change:
            self._change.wait_for(lambda: not self._blocked, _UNBLOCK_S)
        self._undo.close()

    def end(self) -> None:
        """Release the fault at the end of the test, when later faults have ended."""
        self.release()
        # if a later fault had wrapped our wrapper, `release` could not restore the original
        for restore in reversed(self._restores):
            restore()

    def replace(self, owner: object, name: str, wrap: Callable[[Method], object]) -> None:
        """Replace a method by ``wrap(method)`` until the fault is released."""
        self._restores.append(patch(owner, name, wrap(need(owner, name))))
        self._undo.at_end(self._restores[-1])

    def on_release(self, action: Callable[[], None]) -> None:
        """Call `action` when the fault is released."""
        self._undo.at_end(action)


def slow_transfer(scheduler: Scheduler, fault: Fault) -> None:
    """Block each transfer of this stage in the transfer engine's thread until the fault is over."""

    def hold() -> None:
        fault.hit()
        fault.block()

    def wrap(get: Method) -> Method:
        def unblock_and_get(*args: object, **kwargs: object) -> object:
            fault.unblock()
            return get(*args, **kwargs)

        return unblock_and_get

    _before_transfers(scheduler, fault, hold)
    for queue in need(kv_manager(scheduler), "transfer_queues"):
        fault.replace(queue, "get", wrap)


def late_transfers(scheduler: Scheduler, fault: Fault, iterations: Callable[[], int]) -> None:
    """Delay each transfer of this stage by ``iterations()`` iterations of its loop."""
    if role_of(scheduler) == "prefill":
        _before_transfers(scheduler, fault, lambda: fault.block_for(iterations()))


def _before_transfers(scheduler: Scheduler, fault: Fault, action: Callable[[], None]) -> None:
    """Call `action` before each transfer of this stage, in the transfer engine's thread."""

    def wrap(send: Method) -> Method:
        def act_and_send(*args: object, **kwargs: object) -> object:
            action()
            try:
                return send(*args, **kwargs)
            finally:
                fault.sent()

        return act_and_send

    _wrap_sends(scheduler, fault, wrap)


def late_metadata(scheduler: Scheduler, fault: Fault, iterations: Callable[[], int]) -> None:
    """Delay each request's metadata on decode by ``iterations()`` iterations of its loop.

    The metadata then arrives after the report that the request is done, so decode must check
    whether it is there. SGLang can send metadata in a message instead of by the transfer engine
    (SGLANG_MOONCAKE_SEND_AUX_TCP); this fault makes it do so. Metadata of a request that decode has
    dropped in the meantime is dropped, too: its slot may belong to another request.
    """
    manager = kv_manager(scheduler)
    if role_of(scheduler) == "prefill":
        fault.replace(manager, "send_aux", lambda _: need(manager, "send_aux_tcp"))
        return
    kept: deque[tuple[int, list[bytes]]] = deque()
    due: dict[int, int] = {}

    def land() -> None:
        for _ in range(len(kept)):
            room, message = kept.popleft()
            if fault.count < due[room] and not fault.over.is_set():
                kept.append((room, message))
            elif room in need(manager, "request_status"):
                take(message)

    def keep(message: list[bytes]) -> None:
        room = int(message[1])
        if room not in due:
            late = iterations()
            fault.hits += bool(late)
            due[room] = fault.count + late
        kept.append((room, message))

    take = need(manager, "_handle_aux_data")
    fault.on_release(land)
    fault.replace(manager, "_handle_aux_data", lambda _: keep)
    fault.each_iteration.append(land)


def fail_transfer(scheduler: Scheduler, fault: Fault, times: int, *, torn: bool = False) -> None:
    """Let the transfer engine fail the next `times` transfers of this stage.

    `torn`: it writes the first half of each before it fails; else nothing.
    """

    def wrap(send: Method) -> Method:
        def refuse(*args: object, **kwargs: object) -> object:
            if fault.hits >= times or fault.over.is_set():
                return send(*args, **kwargs)
            fault.hit()
            if torn:
                send(*map(_first_half, args), **{k: _first_half(v) for k, v in kwargs.items()})
            return -1

        return refuse

    _wrap_sends(scheduler, fault, wrap)
    manager = kv_manager(scheduler)

    def forgive() -> None:
        # after a failed transfer SGLang sends nothing more to that decode rank
        need(manager, "failed_sessions").clear()
        need(manager, "session_failures").clear()

    fault.on_release(forgive)


def _first_half(argument: object) -> object:
    """Return the first half of a list of buffers, addresses or lengths; other arguments as is."""
    return argument[: (len(argument) + 1) // 2] if isinstance(argument, list) else argument


def short_deferred_release(scheduler: Scheduler, fault: Fault) -> None:
    """Let decode keep the target memory of a failed transfer for one second only.

    That is safe because the faults in this module refuse a transfer before it writes anything.
    """
    for queue, seconds in deferred_release(scheduler):
        fault.replace(queue, seconds, lambda _: 1.0)


def late_poll(scheduler: Scheduler, fault: Fault, iterations: int) -> None:
    """Report the success of a transfer to this stage `iterations` late."""
    late_answers(scheduler, fault, lambda word: iterations if word == "done" else 0)


def late_answers(scheduler: Scheduler, fault: Fault, iterations: Callable[[str], int]) -> None:
    """Report to this stage late that a room is ready for its KV, and that the KV has been moved.

    The delays, in iterations, are ``iterations("ready")`` and ``iterations("done")``, asked once
    per room.
    """
    poll = poll_class()
    words = {
        poll.WaitingForInput: ("ready", poll.Bootstrapping),
        poll.Success: ("done", poll.Transferring),
    }
    due: dict[tuple[int, str], int] = {}

    def answer(room: int, status: object) -> object:
        if status not in words or fault.over.is_set():
            return status
        word, before = words[status]
        if (room, word) not in due:
            due[room, word] = fault.count + iterations(word)
        if fault.count >= due[room, word]:
            return status
        fault.hit()
        return before

    _wrap_polls(scheduler, fault, answer)
    if agrees_by_store(scheduler):
        ready_late(scheduler, fault, answer)


def flaky_poll(scheduler: Scheduler, fault: Fault) -> None:
    """Report a transfer's success to this stage only at the first poll of an iteration.

    At that poll the stages begin to agree on what is done. Later polls of the iteration report that
    the transfer is still under way.
    """
    poll = poll_class()
    polled: dict[int, int] = {}

    def answer(room: int, status: object) -> object:
        first = polled.get(room) != fault.count
        polled[room] = fault.count
        if status != poll.Success or fault.over.is_set() or first:
            return status
        fault.hit()
        return poll.Transferring

    _wrap_polls(scheduler, fault, answer)


def lose_room(scheduler: Scheduler, fault: Fault, rounds: int) -> None:
    """Mark each room of this stage as failed `rounds` iterations after the stage first polls it as
    ready, at its next poll (0: at the first one).

    If the stages agree through a store, one iteration covers both steps. Then a room is lost after
    the first stage has decided and before this stage acts on it (0: before the decision).
    """
    poll, manager = poll_class(), kv_manager(scheduler)
    heard: dict[int, int] = {}

    def lose(room: int) -> None:
        fault.hit()
        manager.record_failure(room, "room lost on this stage (pytest-pprank)")
        manager.update_status(room, poll.Failed)

    def answer(room: int, status: object) -> object:
        if status != poll.WaitingForInput or fault.over.is_set():
            return status
        if fault.count - heard.setdefault(room, fault.count) >= rounds:
            lose(room)
        return status

    if not agrees_by_store(scheduler):
        _wrap_polls(scheduler, fault, answer)
    elif rounds:
        lose_before_start(scheduler, fault, lose)
    else:
        lose_when_ready(scheduler, fault, lose)


def _wrap_sends(scheduler: Scheduler, fault: Fault, wrap: Callable[[Method], Method]) -> None:
    engine = need(kv_manager(scheduler), "engine")
    found = [name for name in _SENDS if hasattr(engine, name)]
    if not found:
        raise missing(f"{' or '.join(_SENDS)} on {type(engine).__qualname__}")
    for name in found:
        fault.replace(engine, name, wrap)


def _wrap_polls(scheduler: Scheduler, fault: Fault, answer: Answer) -> None:
    """Let ``answer(room, status)`` replace the result of each poll of this stage's transfers."""

    def wrap(ask: Method) -> Method:
        def poll(self: SglangObject) -> object:
            return answer(self.bootstrap_room, ask(self))

        return poll

    utils = import_module("sglang.srt.disaggregation.utils")
    kinds = need(utils, "KVClassType")
    kind = kinds.SENDER if role_of(scheduler) == "prefill" else kinds.RECEIVER
    fault.replace(utils.get_kv_class(scheduler.transfer_backend, kind), "poll", wrap)
