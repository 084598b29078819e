"""The folder of a bench. It is removed at the end; after kill -9 the next bench removes it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_pprank.launch.owned_folder import OwnedFolder, remove_leftovers

_PREFIX = "pprank-regressions-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a folder for the duration of this context; remove those of killed benches."""
    for _ in remove_leftovers(_PREFIX, tempfile.gettempdir()):
        pass
    folder = OwnedFolder.make(_PREFIX, tempfile.gettempdir())
    try:
        yield folder.path
    finally:
        folder.remove()
