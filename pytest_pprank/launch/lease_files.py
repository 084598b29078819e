"""Locked files in one folder per machine: who owns what, as described in the locked file itself.

Every lock is a file ``<name>.lock`` under flock, through filelock. The kernel releases it when its
owner dies, however that happens, and filelock closes it in forked children. The owner writes a
`Note` into the file. An orderly release leaves nothing: the owner unlinks the file while holding
the lock, and the last owner removes the folder. A process that had opened the file before that
finds that it has no name any more, and starts over (filelock >= 3.32 checks this). Files of a
killed owner are removed by its launcher, or else taken over or removed by the next process that
uses the folder.

The folder is shared by all users of the machine, so it and its files are writable for all. They are
neither secret nor protected: any user can hold a lease for ever, and what is read from a file is
checked and sanitised before it is shown. The folder is not sticky, unlike /tmp: in a sticky folder
no other user could remove the files of a user's killed run, nor, with filelock >= 4.3, use them.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import Timeout, UnixFileLock

from pytest_pprank.proc import stat_of

FOLDER_VARIABLE = "PPRANK_LEASE_DIR"
_FOLDER = "pytest-pprank-leases"
_SUFFIX = ".lock"
_OPEN_TO_ALL = 0o777
_FILE_MODE = 0o666
_MOST_BYTES = 65536
_MOST_SHOWN = 200
_TRIES = 20


def default_folder() -> Path:
    """Return our folder in $PPRANK_LEASE_DIR or else /tmp, whatever TMPDIR is: one per machine."""
    shared = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
    return Path(os.environ.get(FOLDER_VARIABLE) or shared) / _FOLDER


@dataclass(frozen=True)
class Note:
    """What the owner of a lock writes about itself.

    `start`: its start in clock ticks since boot. `since`: when it got the lock, in seconds since
    the epoch. `wants`: the names it waits for.
    """

    pid: int
    start: int
    user: str
    since: float
    command: str
    wants: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: bytes) -> Note | None:
        """Parse what `write` has written; return None for anything else."""
        try:
            found = json.loads(text)
            wants = tuple(str(name) for name in found.get("wants", ()))
            kept: dict[str, Any] = {f.name: found[f.name] for f in fields(cls) if f.name != "wants"}
            kept |= {name: int(kept[name]) for name in ("pid", "start")}
            kept |= {name: _clean(str(kept[name])) for name in ("user", "command")}
            return cls(**{**kept, "since": float(kept["since"]), "wants": wants})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None  # half-written, or another program's file

    def write(self, fd: int) -> None:
        """Replace the contents of the file."""
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(self)).encode(), 0)

    @property
    def alive(self) -> bool:
        """Whether the writer still runs, as far as this process can see."""
        return process_start(self.pid) == self.start


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if that cannot be read."""
    seen = stat_of(pid)
    return None if seen is None else seen.started


def _clean(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text[: _MOST_SHOWN + 1])
    return shown if len(shown) <= _MOST_SHOWN else shown[: _MOST_SHOWN - 3] + "..."


class LockFile:
    """A lock that this process holds from `acquire` until `release`, or until it dies."""

    def __init__(self, path: Path, note: Note | None) -> None:
        self._path = path
        self._note = note
        self._identity: tuple[int, int] | None = None
        # with on_acquired filelock never falls back to a lock that outlives its owner
        self._lock = UnixFileLock(
            path, mode=_FILE_MODE, thread_local=False, blocking=False, on_acquired=self._acquired
        )

    def _acquired(self, fd: int) -> None:
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        if self._note is not None:
            self._note.write(fd)

    def acquire(self) -> bool:
        """Try once; return whether the lock was free. Raises OSError if the file cannot be used."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def touch(self) -> None:
        """Show that the owner is not stopped."""
        with suppress(OSError):
            os.utime(self._path, follow_symlinks=False)

    def release(self) -> None:
        """Remove the file, release the lock, and remove the folder if it is empty now."""
        with suppress(OSError):  # another user's file, or it was removed by a cleaner of /tmp
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self._path.unlink()
        self._lock.release()
        with suppress(OSError):
            self._path.parent.rmdir()


class LockFolder:
    """The locks in one folder. An OSError from any method means that the folder cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def try_lock(self, name: str, note: Note) -> LockFile | None:
        """Take a lock without waiting; return None if another process holds it."""
        for _ in range(_TRIES):
            self._prepare()
            lock = LockFile(self._file(name), note)
            # another process may have removed the folder, even while filelock was creating it
            with suppress(FileNotFoundError, FileExistsError):
                if not lock.acquire():
                    return None
                self._prepare()  # if filelock created the folder, it is not open to all yet
                return lock
        raise FileNotFoundError(f"{self.path} vanishes again and again")

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all locks, held or left behind, sorted."""
        try:
            found = [entry.name for entry in os.scandir(self.path)]
        except FileNotFoundError:
            return []
        kept = (name for name in found if name.startswith(prefix) and name.endswith(_SUFFIX))
        return sorted(name[: -len(_SUFFIX)] for name in kept)

    def note(self, name: str) -> Note | None:
        """Return the note of a lock's living owner; None without owner or note."""
        try:
            fd = os.open(self._file(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            note = Note.parse(os.read(fd, _MOST_BYTES))
        except OSError:
            return None
        finally:
            os.close(fd)
        return note if note is not None and note.alive else None

    def touched(self, name: str) -> float:
        """Return when a lock was last touched, in seconds since the epoch; 0 if it is gone."""
        try:
            return self._file(name).lstat().st_mtime
        except OSError:
            return 0.0

    def is_locked(self, name: str) -> bool:
        """Return whether a process holds a lock; remove the file if none does."""
        path = self._file(name)
        if not path.exists():
            return False
        probe = LockFile(path, None)
        try:
            if not probe.acquire():
                return True
        except OSError:
            return False  # it was removed, or is another program's file
        probe.release()
        return False

    def sweep(self) -> None:
        """Remove the locks that dead owners have left."""
        for name in self.names():
            self.is_locked(name)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{_SUFFIX}"

    def _prepare(self) -> None:
        """Create the folder, open to all users from the start; raises OSError if it is unusable."""
        if not os.path.lexists(self.path):
            made = tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            os.chmod(made, _OPEN_TO_ALL)
            try:
                os.rename(made, self.path)
            except OSError:
                os.rmdir(made)  # another process has created it
        with suppress(FileNotFoundError):
            self._check(self.path.lstat())

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(f"{self.path} is not a folder")
        mode = stat.S_IMODE(status.st_mode)
        if mode == _OPEN_TO_ALL:
            return
        if status.st_uid == os.geteuid():
            self.path.chmod(_OPEN_TO_ALL)  # filelock also creates it, with the default mode
        elif mode & _OPEN_TO_ALL != _OPEN_TO_ALL:
            raise PermissionError(
                f"{self.path} belongs to user {status.st_uid} with mode {mode:o}: it must be "
                f"{_OPEN_TO_ALL:o} to be shared"
            )


def sweep() -> None:
    """Remove what dead owners have left in this machine's folder."""
    LockFolder(default_folder()).sweep()
