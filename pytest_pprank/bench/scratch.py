"""The folder of a bench. It goes with the bench; after kill -9 the next bench removes it.

Who uses a folder has it locked (flock(2)): the kernel lets go of that when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "pprank-regressions-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for the time of this context; what killed benches have left is removed."""
    _remove_leftovers()
    new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    # locked before it gets its name: no other bench takes it for a leftover
    lock = _lock(new, fcntl.LOCK_SH)
    folder = new.rename(new.with_name(new.name.removeprefix(".")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, another user's, or gone meanwhile
            lock = _lock(folder, fcntl.LOCK_EX)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path, how: int) -> int:
    """Lock a folder without waiting, until the returned file descriptor is closed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd
