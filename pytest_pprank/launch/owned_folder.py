"""Temporary folders that say by a lock who uses them: what killed processes have left is removed.

Whoever uses such a folder has it locked (flock(2)): the kernel lets go of that when a process dies,
however that happens. One that nobody has locked is a leftover.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_RANDOM = "?" * 8
"""What mkdtemp puts behind a prefix: a longer name has another prefix, and other owners."""


class OwnedFolder:
    """A folder that nobody takes for a leftover while this process, or another user of it, lives.

    Raises FileNotFoundError where it has been taken for one already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _hold(path)

    @classmethod
    def make(cls, prefix: str, parent: str | Path) -> OwnedFolder:
        """Make a new one in `parent`."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with suppress(FileNotFoundError):  # somebody else was faster than our lock
                return cls(path)

    def remove(self) -> None:
        """Remove it with all that is in it, as far as that goes, and let go of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_leftovers(prefix: str, parent: str | Path) -> Iterator[Path]:
    """Yield the folders of `make` that have no owner any more, each before it is removed."""
    for path in Path(parent).glob(f"{prefix}{_RANDOM}"):
        with suppress(OSError):  # in use, another user's, or gone meanwhile
            lock = _lock(path, fcntl.LOCK_EX)
            try:
                yield path
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _hold(path: Path) -> int:
    """Share the lock of a folder, until the returned file descriptor is closed."""
    try:
        lock = _lock(path, fcntl.LOCK_SH)
    except BlockingIOError as error:
        raise FileNotFoundError(f"{path} is being removed") from error
    except FileNotFoundError:
        raise
    except OSError:  # a file system without locks: there nobody can take it for a leftover
        return -1
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(lock), path.lstat()):
            return lock
    os.close(lock)
    raise FileNotFoundError(f"{path} has been removed")


def _lock(path: Path, how: int) -> int:
    """Lock a folder without waiting, until the returned file descriptor is closed."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd
