"""Which frames of a stack are of no interest to the author of a test: those of libraries that only
call what they were given (`unittest`, `contextlib`, `functools`, `pytest.raises`, thread pools).
"""

from __future__ import annotations

import os
import sysconfig
from functools import lru_cache
from types import FrameType

from pytest_pprank._pytest_compat import folders_of_pytest

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@lru_cache
def _folders() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders of the standard library, and those of pytest and of what starts ranks."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    standard = {*paths, os.path.dirname(os.__file__)}
    ours = (*folders_of_pytest(), os.path.join(_PACKAGE, "launch"))
    return tuple(path + os.sep for path in standard), tuple(path + os.sep for path in ours)


@lru_cache(4096)
def is_library(file: str) -> bool:
    """Whether `file`, of a code object, belongs to the standard library or to pytest."""
    standard, ours = _folders()
    if file.startswith(("<frozen", *ours)) or os.path.basename(file) == "typing_extensions.py":
        return True
    # what is installed lies below the folder of the standard library
    return file.startswith(standard) and not any(part in file for part in _INSTALLED)


def caller(first: FrameType) -> FrameType:
    """Return `first`, or the nearest one that has called it and is not a library's."""
    frame: FrameType | None = first
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return frame or first
