"""Temporary folders with a lock that shows whether they are in use, to remove leftovers.

Each user of such a folder shares its lock (flock(2)), which the kernel releases when a process
dies, however that happens. A folder that nobody has locked was left by killed processes.
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
"""What mkdtemp appends to a prefix. (A longer name has another prefix, and other owners.)"""


class OwnedFolder:
    """A folder that is not removed as a leftover while this process, or another user of it, lives.

    Raises FileNotFoundError if it is being removed, or has been removed, as a leftover.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _hold(path)

    @classmethod
    def make(cls, prefix: str, parent: str | Path) -> OwnedFolder:
        """Create a new one in `parent`."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with suppress(FileNotFoundError):  # removed as a leftover before it was locked
                return cls(path)

    def remove(self) -> None:
        """Remove the folder with its contents, as far as possible, and release the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_leftovers(prefix: str, parent: str | Path) -> Iterator[Path]:
    """Yield the folders of `make` that nobody uses any more, and remove each after that."""
    for path in Path(parent).glob(f"{prefix}{_RANDOM}"):
        with suppress(OSError):  # in use, another user's, or already removed
            lock = _lock(path, fcntl.LOCK_EX)
            try:
                yield path
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _hold(path: Path) -> int:
    """Share the lock of a folder until the returned file descriptor is closed."""
    try:
        lock = _lock(path, fcntl.LOCK_SH)
    except BlockingIOError as error:
        raise FileNotFoundError(f"{path} is being removed") from error
    except FileNotFoundError:
        raise
    except OSError:  # a file system without locks: leftovers cannot be detected there
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
