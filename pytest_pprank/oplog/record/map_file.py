"""Maps a file of a fixed size into memory; what is written there survives this process."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def map_file(path: Path, size: int) -> mmap.mmap | None:
    """Create the file at `path`, full of zeros, and map it. Raises OSError without disk space.

    (The return type has None because its users set their map to None in a forked child.)
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # allocate now: writing to a sparse file on a full disk would be a SIGBUS in the test
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
