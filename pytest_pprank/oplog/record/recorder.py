"""Updates the record of this rank's operations with what happens to them."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pytest_pprank.oplog.file import PENDING, Call, State
from pytest_pprank.oplog.record.calls import CallDescriber, Kind, thread_name
from pytest_pprank.oplog.record.flight_recorder import (
    dump_flight_recorder,
    save_dump,
    still_running,
)
from pytest_pprank.oplog.record.writer import (
    CREATED,
    DROPPED,
    FAILED,
    REFUSED,
    EncodedCall,
    Entry,
    LedgerWriter,
)
from pytest_pprank.protocol.world import Groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LINE = 200
_WITHOUT_WORK = "monitored_barrier"
"""The operation that gloo completes inside the call: it returns no Work to wait for."""
Listener = Callable[[str, Call, int], None]


class Handle:
    """The operations behind a Work: usually one, several if they were coalesced."""

    __slots__ = ("entries", "issuer", "on_device", "references")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.references = 0
        self.issuer = threading.get_ident()
        # operations of NCCL and similar backends run on the device: `wait` blocks a stream of the
        # device, not the rank
        self.on_device = "ccl" in entries[0].call.backend


class _Reference(weakref.ref[Any]):
    """A weak reference to a Work or Future, with its id and the operations behind it."""

    __slots__ = ("handle", "key")
    key: int
    handle: Handle


def _never_raises(
    method: Callable[Concatenate[LedgerRecorder, _P], _R],
) -> Callable[Concatenate[LedgerRecorder, _P], _R | None]:
    """Make `method` record an exception in the ledger: the user's operation must not see it."""

    def wrapper(self: LedgerRecorder, /, *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.fault(error)
            return None

    functools.update_wrapper(wrapper, method)
    return wrapper


class LedgerRecorder:
    """Receives the calls of the hooks in torch (oplog.record.hooks). No method raises."""

    def __init__(self, writer: LedgerWriter, describer: CallDescriber) -> None:
        self._writer = writer
        self._describer = describer
        # By id of a Work or Future. Weak, because the user decides how long a Work lives: gloo
        # aborts the operation of one that is deleted early.
        self._handles: dict[int, _Reference] = {}
        # filled by callbacks of weak references, which may run anywhere, even inside the writer
        self._dropped: deque[Handle] = deque()
        self._on_release = self._released  # avoids a new bound method per reference
        self._local = threading.local()
        self._used_nccl = False
        self.listeners: tuple[Listener, ...] = ()

    @property
    def world(self) -> tuple[int, ...]:
        """The ranks of torch's default group."""
        return self._describer.world

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Notify `listener` of operations from now on; return a function that ends this."""
        self.listeners = (*self.listeners, listener)

        def end() -> None:
            self.listeners = tuple(other for other in self.listeners if other is not listener)

        return end

    def tee(self, receiver: Callable[[bytes], None]) -> None:
        """Call `receiver` with the record of each operation that has ended."""
        self._writer.tee = receiver

    def notify(self, event: str, entry: Entry | Exception) -> None:
        """Notify the listeners; raises what they raise."""
        if isinstance(entry, Entry):
            self._notify(event, entry.call, entry.number)

    def _notify(self, event: str, call: Call, number: int = 0) -> None:
        for listener in self.listeners:
            listener(event, call, number)

    @_never_raises
    def begin_test(self, serial: int) -> None:
        """Restart the turns of all channels."""
        self._note_dropped()
        self._writer.begin_test(serial)

    @_never_raises
    def unfinished(self) -> bool:
        """Return whether an operation of this test was never seen to end."""
        self._note_dropped()
        return self._writer.unfinished()

    @property
    def erred(self) -> bool:
        """Whether an operation between ranks, or a wait for one, has raised in this test."""
        return self._writer.erred

    @property
    def threads(self) -> frozenset[str]:
        """The names of the threads that have issued operations in this test."""
        return self._writer.threads

    @_never_raises
    def groups(self) -> Groups:
        """Return the existing groups by identity: name in words, members, number of collectives."""
        counts = self._writer.collectives()
        return {
            identity: (label, ranks, counts.get(identity, 0))
            for identity, label, ranks in self._describer.groups()
        }

    def open_calls(self) -> list[Call]:
        """Return the operations of this test that were never waited for and whose handle exists."""
        self._note_dropped()
        return self._writer.open_calls()

    def operation(
        self, kind: Kind, group: ProcessGroup, arguments: Sequence[Any]
    ) -> Entry | Exception:
        """Record an operation that is about to be issued; return the entry, or the error."""
        try:
            if self._dropped:
                self._note_dropped()
            form = self._describer.operation(kind, group, arguments)
            # gloo only queues operations in the call, except for the one without a Work
            blocks = kind.name == _WITHOUT_WORK or "ccl" in form.call.backend
            return self._writer.issue(form, State.WAITING if blocks else State.ISSUED)
        except Exception as error:
            return error  # a fault of the recorder only if torch accepts these arguments

    @_never_raises
    def creation(self, arguments: Mapping[str, Any]) -> Entry | None:
        """Record that a group is about to be created; return the entry if this rank will join."""
        members = tuple(arguments["global_ranks_in_group"])
        name, backend = str(arguments["group_name"]), str(arguments["backend"])
        # for the default group torch passes no members
        label = str(arguments.get("group_desc") or "undefined") if members else ""
        ranks = members or tuple(range(int(arguments["group_size"])))
        if not members:
            self._describer.begin_world(len(ranks))
        call = self._describer.creation(name, label, ranks, backend)
        if arguments["group_rank"] is None:
            self._notify(CREATED, call)
            return None
        self._writer.forget_group(self._describer.begin_group(call))
        entry = self._writer.issue(EncodedCall(call), State.WAITING)
        self.notify(CREATED, entry)
        return entry

    @_never_raises
    def store_wait(self, method: str, keys: object) -> Entry:
        """Record that a thread is about to wait for keys of a store."""
        return self._writer.issue(
            EncodedCall(self._describer.store_wait(method, keys)), State.WAITING
        )

    @_never_raises
    def ended(self, entry: Entry | None, error: BaseException | None = None) -> None:
        """Record that a blocking call without a Work has returned or raised."""
        if entry is not None and error is None:
            self._writer.set_state(entry, State.COMPLETED)
        elif entry is not None:
            self._writer.set_state(entry, State.FAILED, error=first_line(error))
            self.notify(FAILED, entry)

    @_never_raises
    def refused(self, entry: Entry | Exception, error: BaseException) -> None:
        """Record that the call which issues an operation has raised: the operation never began."""
        if not isinstance(entry, Entry):
            return
        if entry.call.kind == _WITHOUT_WORK:
            self.ended(entry, error)
        else:
            self._writer.refuse(entry, first_line(error))
            self.notify(REFUSED, entry)

    # The next three run in every operation; they inline `_never_raises` for speed.

    def issued(self, entry: Entry | Exception, work: Work | None) -> None:
        """Record that the call which issues an operation has returned."""
        try:
            if isinstance(entry, Exception):
                raise entry
            batch: list[Entry] | None = getattr(self._local, "batch", None)
            if batch is not None:
                batch.append(entry)
                self._writer.set_state(entry, State.ISSUED)
            else:
                self._bind([entry], work)
        except Exception as error:
            self.fault(error)

    def waits(self, work: object) -> Handle | None:
        """Record that this thread waits for a Work or Future; return None for an unknown one."""
        try:
            if self._dropped:
                self._note_dropped()  # one of them may be why this thread waits for ever
            handle = self._handle(work)
            if handle is not None:
                thread = "" if handle.issuer == threading.get_ident() else thread_name()
                for entry in handle.entries:
                    self._writer.set_state(entry, State.WAITING, thread)
            return handle
        except Exception as error:
            self.fault(error)
            return None

    def waited(self, handle: Handle | None, error: str = "", done: bool = True) -> None:
        """Record that the wait is over; `done` is False after a wait that timed out."""
        if handle is None:
            return
        try:
            after = State.QUEUED if handle.on_device else State.COMPLETED
            if error:
                after = State.FAILED if done else State.ISSUED
            for entry in handle.entries:
                self._writer.set_state(entry, after, error=error)
                if error:
                    self.notify(FAILED, entry)
        except Exception as fault:
            self.fault(fault)

    @_never_raises
    def begin_batch(self) -> None:
        """Collect this thread's operations from now on: they share the Work of `end_batch`."""
        self._local.batch = []

    @_never_raises
    def end_batch(self, work: Work | None) -> None:
        """Bind the operations since `begin_batch` to their Work."""
        batch: list[Entry] = getattr(self._local, "batch", None) or []
        self._local.batch = None
        if batch:
            self._bind(batch, work)

    @_never_raises
    def derived(self, work: Work, future: object) -> None:
        """Treat a wait for `future` as a wait for `work`."""
        handle = self._handle(work)
        if handle is not None:
            self._track(future, handle)

    @_never_raises
    def seen_completed(self, work: Work) -> None:
        """Record that a Work has answered that it is completed."""
        handle = self._handle(work)
        for entry in handle.entries if handle is not None else ():
            if entry.state is not State.WAITING:  # the end of the wait says more
                self._writer.set_state(entry, State.COMPLETED)

    @_never_raises
    def update_ledger(self, flight_record: Path) -> None:
        """Ask each Work that nobody waits for whether it is done; dump NCCL's flight recorder."""
        self._note_dropped()
        for reference in list(self._handles.values()):
            work, on_device = reference(), reference.handle.on_device
            if work is not None and not on_device and hasattr(work, "is_completed"):
                work.is_completed()  # the hook records the answer
        if self._used_nccl and (dump := dump_flight_recorder()):
            self._writer.set_running(still_running(dump))
            save_dump(dump, flight_record)

    @_never_raises
    def update_device(self) -> None:
        """Record what NCCL's flight recorder says still runs."""
        if self._used_nccl and (dump := dump_flight_recorder()):
            self._writer.set_running(still_running(dump))

    def fault(self, error: Exception) -> None:
        """Record that recording failed."""
        self._writer.fault(f"{type(error).__name__}: {first_line(error)}")

    def _bind(self, entries: list[Entry], work: Work | None) -> None:
        handle = Handle(entries)
        self._used_nccl |= handle.on_device
        if work is None:  # done before the call returned, or its end can never be seen
            self.waited(handle)
            return
        self._track(work, handle)
        for entry in entries:
            if entry.state is not State.ISSUED:
                self._writer.set_state(entry, State.ISSUED)

    def _track(self, owner: object, handle: Handle) -> None:
        handle.references += 1
        reference = _Reference(owner, self._on_release)
        reference.key, reference.handle = id(owner), handle
        self._handles[reference.key] = reference

    def _released(self, reference: _Reference) -> None:
        if self._handles.get(reference.key) is not reference:
            return  # a new object has the same id
        del self._handles[reference.key]
        handle = reference.handle
        handle.references -= 1
        if not handle.references:
            for entry in handle.entries:
                if entry.state in PENDING:
                    self._dropped.append(handle)
                    break

    def _handle(self, owner: object) -> Handle | None:
        reference = self._handles.get(id(owner))
        return reference.handle if reference is not None and reference() is owner else None

    def _note_dropped(self) -> None:
        while self._dropped:
            handle = self._dropped.popleft()
            after = State.QUEUED if handle.on_device else State.DROPPED
            for entry in handle.entries:
                self._writer.set_state(entry, after)
                if self.listeners and after is State.DROPPED:
                    self.notify(DROPPED, entry)


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:_LINE]
