"""Device leases: concurrent runs on one machine share no GPUs, and cores only within limits.

A worker group leases before it starts, all or nothing: one GPU per rank, or on cpu one *slot* per
rank. A machine has two slots per core and at least four, so that two groups of two ranks can run
side by side even on the smallest machine (two xdist workers, for example). A group with more ranks
than there are slots takes all slots: if no other group runs, it starts at once, whatever its size.

A group that must wait queues with a ticket: a lock named ``wait-...`` whose note has the names it
wants. Nobody takes names that an older ticket wants, so small groups cannot starve a large one.
Nobody waits while holding some of the names, so runs cannot deadlock. The price is that a small run
waits behind a large one even if it would fit beside the present owner.

An owner that sees a ticket for its names ends its group after the next test, but not before
`TURN_SECONDS` since it got the lease. So two xdist workers of one run that want more than there is
take turns.
"""

from __future__ import annotations

import getpass
import itertools
import os
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from pytest_pprank.errors import SEE_DOCTOR, GroupError
from pytest_pprank.launch.lease_files import (
    FOLDER_VARIABLE,
    LockFile,
    LockFolder,
    Note,
    default_folder,
    process_start,
)

TURN_SECONDS = 10.0
_POLL_SECONDS = 0.1
_SHOW_AFTER_SECONDS = 0.5
_ASLEEP_SECONDS = 10.0  # a ticket whose owner is stopped must not block the queue
_TICKET = "wait-"
_counter = itertools.count()


class LeaseError(GroupError):
    """Devices could not be leased; the message names their owners or what is wrong."""


def cpu_slots(cores: int | None = None) -> tuple[str, ...]:
    """Return the names of this machine's slots: two per core that we may use, and at least four."""
    usable = len(os.sched_getaffinity(0)) if cores is None else cores
    return tuple(f"cpu-slot-{number}" for number in range(max(2 * usable, 4)))


class Lease:
    """What a worker group has leased: some of the names it asked for, in the order given."""

    def __init__(self, queue: LeaseQueue, locks: dict[str, LockFile], turn: float) -> None:
        self.names = tuple(locks)
        self._queue = queue
        self._locks = list(locks.values())
        self._turn_ends = time.monotonic() + turn

    @property
    def wanted(self) -> bool:
        """Whether another run waits for names of this lease, and the lease is old enough to end."""
        return time.monotonic() >= self._turn_ends and bool(self._queue.ahead(self.names))

    def release(self) -> None:
        """Release all names; a second call does nothing."""
        while self._locks:
            self._locks.pop().release()


class LeaseQueue:
    """Leases for one controller.

    `command` describes this run to others. `timeout`: how long to wait, in seconds. `show` prints a
    line for the user. `turn`: for how many seconds a lease is kept although others wait.
    """

    def __init__(
        self,
        command: str,
        timeout: float,
        show: Callable[[str], None],
        *,
        folder: LockFolder | None = None,
        turn: float | None = None,
    ) -> None:
        self._folder = folder or LockFolder(default_folder())
        self._command = command
        self._timeout = timeout
        self._show = show
        self._turn = TURN_SECONDS if turn is None else turn

    def acquire(self, names: Sequence[str], count: int) -> Lease:
        """Lease any `count` of `names`, waiting for them. Raises LeaseError after the timeout.

        After a timeout, further calls try once and do not wait, so that a run with many groups ends
        soon.
        """
        if count > len(names):
            raise LeaseError(f"{count} asked for, and there are only {len(names)}: {names}")
        try:
            return self._attempt(names, count, self.ahead(names)) or self._wait(names, count)
        except OSError as error:
            raise LeaseError(
                f"devices cannot be leased in {self._folder.path}: {error}; name another folder in "
                f"{FOLDER_VARIABLE} (for all runs of this box), or do without by --pprank-lease "
                f"off {SEE_DOCTOR}"
            ) from error

    def _attempt(self, names: Sequence[str], count: int, ahead: Collection[Note]) -> Lease | None:
        reserved = {name for note in ahead for name in note.wants}
        free = [name for name in names if name not in reserved]
        locks: dict[str, LockFile] = {}
        with ExitStack() as undo:
            for left, name in zip(range(len(free), 0, -1), free, strict=True):
                if len(locks) == count or len(locks) + left < count:
                    break
                if (lock := self._folder.try_lock(name, self._note())) is not None:
                    undo.callback(lock.release)
                    locks[name] = lock
            if len(locks) < count:
                return None
            undo.pop_all()
        return Lease(self, locks, self._turn)

    def _wait(self, names: Sequence[str], count: int) -> Lease:
        ticket = self._ticket(names)
        started, shown = time.monotonic(), False
        try:
            while True:
                ahead = self.ahead(names, ticket)
                if (lease := self._attempt(names, count, ahead)) is not None:
                    return lease
                waited = time.monotonic() - started
                if waited >= self._timeout:
                    raise LeaseError(self._timed_out(names, count, ahead))
                if waited >= _SHOW_AFTER_SECONDS and not shown:
                    shown = True
                    self._show(self._waiting(names, count, ahead))
                ticket[1].touch()
                time.sleep(_POLL_SECONDS * random.uniform(0.5, 1.5))
        finally:
            ticket[1].release()

    def _ticket(self, names: Sequence[str]) -> tuple[str, LockFile]:
        while True:  # a process that tests whether this ticket is locked locks it for a moment
            # sorted by name is sorted by age
            name = f"{_TICKET}{time.time_ns():020d}-{os.getpid()}-{next(_counter)}"
            if (lock := self._folder.try_lock(name, self._note(tuple(names)))) is not None:
                return name, lock

    def ahead(self, names: Sequence[str], ticket: tuple[str, LockFile] | None = None) -> list[Note]:
        """Return the notes of tickets that want any of `names`; only those older than `ticket`."""
        found: list[Note] = []
        for name in self._folder.names(_TICKET):
            if ticket is not None and name >= ticket[0]:
                break
            note = self._folder.note(name)
            awake = time.time() - self._folder.touched(name) < _ASLEEP_SECONDS
            if (
                self._folder.is_locked(name)
                and awake
                and note
                and not {*note.wants}.isdisjoint(names)
            ):
                found.append(note)
        return found

    def _note(self, wants: tuple[str, ...] = ()) -> Note:
        pid = os.getpid()
        return Note(pid, process_start(pid) or 0, _user(), time.time(), self._command, wants)

    def _waiting(self, names: Sequence[str], count: int, ahead: Sequence[Note]) -> str:
        return (
            f"pprank: waiting for {count} of {_shown(names)}, for at most {self._timeout:g} s: "
            f"{self._holders(names, ahead)}"
        )

    def _timed_out(self, names: Sequence[str], count: int, ahead: Sequence[Note]) -> str:
        waited, self._timeout = self._timeout, 0.0
        return (
            f"no {count} of {_shown(names)} became free within {waited:g} s "
            f"(--pprank-lease-timeout): {self._holders(names, ahead)}. Wait for longer, or share "
            "them with --pprank-lease off"
        )

    def _holders(self, names: Sequence[str], ahead: Sequence[Note]) -> str:
        parts = _held(self._folder, names)
        parts += [f"first in the queue is {_describe(note)}" for note in ahead[:1]]
        return "; ".join(parts) or "the holders have just left"


def _held(folder: LockFolder, names: Sequence[str]) -> list[str]:
    """Return who holds which of `names` in a folder, one text per holder."""
    by_holder: dict[str, list[str]] = {}
    for name in names:
        if folder.is_locked(name):
            by_holder.setdefault(_describe(folder.note(name)), []).append(name)
    return [f"{_shown(theirs)} held by {who}" for who, theirs in by_holder.items()]


def holders(folder: LockFolder) -> list[str]:
    """Return who holds what in a folder now, one text per holder."""
    return _held(folder, [name for name in folder.names() if not name.startswith(_TICKET)])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{names[0]} to {names[-1]}"


def _describe(note: Note | None) -> str:
    if note is None:
        return "a process that cannot be seen from here"
    since = time.strftime("%H:%M:%S", time.localtime(note.since))
    return f"pid {note.pid} ({note.user}) since {since}: {note.command}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return str(os.getuid())
