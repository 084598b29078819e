"""The folders of kept launchers, inside one that no other user can read.

A keeper's folder has its socket, its note (its process, and what it was started with) and its log.
All keepers share one lock, which is held while searching for keepers, starting or ending one. Each
search removes what dead keepers have left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_pprank.errors import PprankError
from pytest_pprank.launch.lease_files import LockFile, default_folder, process_start
from pytest_pprank.launch.shared_memory import remove_semaphores
from pytest_pprank.proc import stat_of

SOCKET, NOTE, LOG = "socket", "note.json", "log"
_ONLY_OURS = 0o700
_LOCK_SECONDS = 60.0
_LEAVE_SECONDS = 10.0
_POLL_SECONDS = 0.02


class KeepError(PprankError):
    """No launcher can be kept here; the message says why."""


@dataclass(frozen=True)
class KeeperNote:
    """The keeper's description of itself.

    `start`: its start in clock ticks since boot. `since`: the same in seconds since the epoch.
    `words`: what it has imported. `identity`: see keep_identity.
    """

    pid: int
    start: int
    since: float
    kind: str
    words: str
    python: str
    identity: dict[str, dict[str, object]]
    ready: bool = False

    def __str__(self) -> str:
        clock = time.strftime("%H:%M", time.localtime(self.since))
        return f"kept since {clock} (pid {self.pid}), {self.words} imported"

    def write(self, folder: Path) -> None:
        """Write the note into the keeper's folder, atomically."""
        new = folder / f"{NOTE}.new"
        new.write_text(json.dumps(asdict(self)))
        new.rename(folder / NOTE)

    @property
    def alive(self) -> bool:
        """Whether the process that wrote the note still runs, and is not a new one with its pid."""
        return process_start(self.pid) == self.start and not _is_zombie(self.pid)


def root() -> Path:
    """Return the folder of this user's keepers, beside the folder of the leases."""
    return default_folder().with_name(f"pytest-pprank-kept-{os.geteuid()}")


@contextmanager
def locked() -> Iterator[Path]:
    """Hold the lock of this user's keepers; raises KeepError if that is impossible."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while (lock := _try_lock()) is None:
        if time.monotonic() > deadline:
            raise KeepError(f"somebody holds {_lock_file()} for {_LOCK_SECONDS:g} s already")
        time.sleep(_POLL_SECONDS)
    try:
        yield root()
    finally:
        lock.release()  # also removes the root, where nothing is kept


def _try_lock() -> LockFile | None:
    try:
        _prepare(root())
        lock = LockFile(_lock_file(), None)
        # another process may have removed the root after releasing its lock
        with suppress(FileNotFoundError, FileExistsError):
            return lock if lock.acquire() else None
    except OSError as error:
        raise KeepError(f"{root()} cannot be used: {error}") from error
    return None


def _lock_file() -> Path:
    return root() / "all.lock"


def _prepare(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(_ONLY_OURS)
    status = folder.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or mode != _ONLY_OURS:
        raise KeepError(
            f"{folder} must be a folder of user {os.geteuid()} with mode {_ONLY_OURS:o}: it "
            f"belongs to user {status.st_uid} and has mode {mode:o}"
        )


def new_folder(kind: str) -> Path:
    """Create the folder of a new keeper."""
    return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=root()))


def keepers() -> Iterator[tuple[Path, KeeperNote]]:
    """Yield the living keepers, and remove the folders of dead ones. Call with the lock held."""
    for folder in sorted(path for path in root().iterdir() if path.is_dir()):
        note = read_note(folder)
        if note is not None and note.alive:
            yield folder, note
        else:
            remove(folder)


def read_note(folder: Path) -> KeeperNote | None:
    """Return the note in a keeper's folder; None if there is none, or it is invalid."""
    try:
        return KeeperNote(**json.loads((folder / NOTE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def end(folder: Path, note: KeeperNote) -> None:
    """End a keeper, but not the launchers it has forked, and remove its folder."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    number = signal.SIGTERM
    while note.alive:
        with suppress(ProcessLookupError):
            os.killpg(note.pid, number)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(_POLL_SECONDS)
    remove(folder)


def remove(folder: Path) -> None:
    """Remove a keeper's folder and its semaphores."""
    shutil.rmtree(folder, ignore_errors=True)
    remove_semaphores(semaphore_name(folder))


def semaphore_name(folder: Path) -> str:
    """Return the prefix of the names of semaphores that a keeper's imports have created."""
    return f"pprank-kept-{folder.name}"


def _is_zombie(pid: int) -> bool:
    seen = stat_of(pid)
    return seen is not None and seen.state == "Z"
