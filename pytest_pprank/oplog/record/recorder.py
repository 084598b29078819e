"""Keeps the notes of this rank's operations in step with what becomes of them."""

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
"""What gloo does inside the call: it has no Work to wait for, and its end is that of the call."""
Listener = Callable[[str, Call, int], None]


class Handle:
    """The operations behind a Work: usually one, several where they were coalesced."""

    __slots__ = ("entries", "issuer", "on_device", "references")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.references = 0
        self.issuer = threading.get_ident()
        # the operations of NCCL and its kin go on by themselves: `wait` blocks the device's
        # stream, not the rank
        self.on_device = "ccl" in entries[0].call.backend


class _Reference(weakref.ref[Any]):
    """To a Work or Future: what it is known by, and the operations behind it."""

    __slots__ = ("handle", "key")
    key: int
    handle: Handle


def _never_raises(
    method: Callable[Concatenate[LedgerRecorder, _P], _R],
) -> Callable[Concatenate[LedgerRecorder, _P], _R | None]:
    """Make what `method` raises an entry in the ledger: the user's operation must not see it."""

    def wrapper(self: LedgerRecorder, /, *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.fault(error)
            return None

    functools.update_wrapper(wrapper, method)
    return wrapper


class LedgerRecorder:
    """What the hooks in torch tell (oplog.record.hooks). No method raises."""

    def __init__(self, writer: LedgerWriter, describer: CallDescriber) -> None:
        self._writer = writer
        self._describer = describer
        # by id of a Work or Future; weak, because the life of a Work is the user's affair: one
        # that is dropped early makes gloo give up the operation
        self._handles: dict[int, _Reference] = {}
        # filled by callbacks of weak references, which come at any point, even inside the writer
        self._dropped: deque[Handle] = deque()
        self._on_release = self._released  # bound once
        self._local = threading.local()
        self._used_nccl = False
        self.listeners: tuple[Listener, ...] = ()

    @property
    def world(self) -> tuple[int, ...]:
        """The ranks of torch's default group."""
        return self._describer.world

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of operations from here on; returns what ends that."""
        self.listeners = (*self.listeners, listener)

        def end() -> None:
            self.listeners = tuple(other for other in self.listeners if other is not listener)

        return end

    def notify(self, event: str, entry: Entry | Exception) -> None:
        """Tell the listeners; raises what they raise."""
        if isinstance(entry, Entry):
            self._notify(event, entry.call, entry.number)

    def _notify(self, event: str, call: Call, number: int = 0) -> None:
        for listener in self.listeners:
            listener(event, call, number)

    @_never_raises
    def begin_test(self, serial: int) -> None:
        """Count the turns of all channels anew."""
        self._note_dropped()
        self._writer.begin_test(serial)

    @_never_raises
    def unfinished(self) -> bool:
        """Whether an operation of this test has not been seen to its end."""
        self._note_dropped()
        return self._writer.unfinished()

    @property
    def erred(self) -> bool:
        """Whether an operation between ranks, or a wait for one, has raised in this test."""
        return self._writer.erred

    @property
    def threads(self) -> frozenset[str]:
        """The names of the threads that have done operations in this test."""
        return self._writer.threads

    @_never_raises
    def groups(self) -> Groups:
        """Return the groups that there are now, by identity: in words, members, collectives."""
        counts = self._writer.collectives()
        return {
            identity: (label, ranks, counts.get(identity, 0))
            for identity, label, ranks in self._describer.groups()
        }

    def open_calls(self) -> list[Call]:
        """Return the operations of this test that nobody has waited for, and whose handle lives."""
        self._note_dropped()
        return self._writer.open_calls()

    def operation(
        self, kind: Kind, group: ProcessGroup, arguments: Sequence[Any]
    ) -> Entry | Exception:
        """Note an operation that is about to be issued."""
        try:
            if self._dropped:
                self._note_dropped()
            form = self._describer.operation(kind, group, arguments)
            # gloo's operations are only queued by the call, but for the one that has no Work
            blocks = kind.name == _WITHOUT_WORK or "ccl" in form.call.backend
            return self._writer.issue(form, State.WAITING if blocks else State.ISSUED)
        except Exception as error:
            return error  # ours only if torch makes more of these arguments

    @_never_raises
    def creation(self, arguments: Mapping[str, Any]) -> Entry | None:
        """Note that a group is about to be created; returns it if this rank is to be in it."""
        members = tuple(arguments["global_ranks_in_group"])
        name, backend = str(arguments["group_name"]), str(arguments["backend"])
        # torch names no members for the default group
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
        """Note that a thread is about to wait for keys of a store."""
        return self._writer.issue(
            EncodedCall(self._describer.store_wait(method, keys)), State.WAITING
        )

    @_never_raises
    def ended(self, entry: Entry | None, error: BaseException | None = None) -> None:
        """Note that a blocking call without a Work has returned or raised."""
        if entry is not None and error is None:
            self._writer.set_state(entry, State.COMPLETED)
        elif entry is not None:
            self._writer.set_state(entry, State.FAILED, error=first_line(error))
            self.notify(FAILED, entry)

    @_never_raises
    def refused(self, entry: Entry | Exception, error: BaseException) -> None:
        """Note that the call which issues an operation has raised: it was not even begun."""
        if not isinstance(entry, Entry):
            return
        if entry.call.kind == _WITHOUT_WORK:
            self.ended(entry, error)
        else:
            self._writer.refuse(entry, first_line(error))
            self.notify(REFUSED, entry)

    # The next three run in every operation: they do by themselves what `_never_raises` would do.

    def issued(self, entry: Entry | Exception, work: Work | None) -> None:
        """Note that the call which issues an operation has returned."""
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
        """Note that this thread waits for a Work or Future; None if it is not one of ours."""
        try:
            if self._dropped:
                self._note_dropped()  # this thread may now wait for ever because of one of them
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
        """Note that the wait is over; not `done` after one whose time ran out."""
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
        """Operations of this thread from here on share the Work that `end_batch` gets."""
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
        """Take a wait for `future` as one for `work`."""
        handle = self._handle(work)
        if handle is not None:
            self._track(future, handle)

    @_never_raises
    def seen_completed(self, work: Work) -> None:
        """Note that somebody has asked a Work, and it is done."""
        handle = self._handle(work)
        for entry in handle.entries if handle is not None else ():
            if entry.state is not State.WAITING:  # whoever waits says more
                self._writer.set_state(entry, State.COMPLETED)

    @_never_raises
    def update_ledger(self, flight_record: Path) -> None:
        """Ask the Works that nobody waits for whether they are done; leave NCCL's own record."""
        self._note_dropped()
        for reference in list(self._handles.values()):
            work, on_device = reference(), reference.handle.on_device
            if work is not None and not on_device and hasattr(work, "is_completed"):
                work.is_completed()  # the hook notes the answer
        if self._used_nccl and (dump := dump_flight_recorder()):
            self._writer.set_running(still_running(dump))
            save_dump(dump, flight_record)

    def fault(self, error: Exception) -> None:
        """Note that noting went wrong."""
        self._writer.fault(f"{type(error).__name__}: {first_line(error)}")

    def _bind(self, entries: list[Entry], work: Work | None) -> None:
        handle = Handle(entries)
        self._used_nccl |= handle.on_device
        if work is None:  # done before the call returned, or nothing will ever tell
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
            return  # another object has got the same id meanwhile
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
    """Return the first line of what an error says."""
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:_LINE]
