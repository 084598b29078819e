"""The folder of a page: refuses what is not ours to replace, and removes a former page."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from pytest_pprank.errors import UsageError

OPTION = "--pprank-report"
INDEX, TRACE, PARTS = "index.html", "trace.json", ".pytest-pprank-parts"
MARK = '<meta name="generator" content="pytest-pprank">'
"""The line by which a page is recognised as one of ours."""
_HEAD_BYTES = 2000


def check(folder: Path) -> None:
    """Raise UsageError unless the page can be written to `folder`."""
    shown = f"{OPTION}: {str(folder)!r}"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown} is not a folder; allowed: a new folder, or a former page's")
    try:
        others = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UsageError(f"{shown} cannot be read ({error.strerror})") from error
    foreign = [name for name in others if name not in (INDEX, TRACE, PARTS)]
    if INDEX in others and not _is_ours(folder / INDEX):
        foreign.insert(0, INDEX)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UsageError(
            f"{shown} has something else in it ({foreign[0]}{more}), which would be lost; allowed: "
            "a new or empty folder, or one with a former page"
        )
    above = folder if folder.exists() else next(p for p in folder.parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{shown} cannot be written: {str(above)!r} is not a writable folder")


def prepare(folder: Path) -> Path:
    """Make the folder, without a former page; return the folder of parts. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder)
        (folder / PARTS).mkdir()
    except OSError as error:
        raise UsageError(
            f"{OPTION}: {str(folder)!r} cannot be written ({error.strerror})"
        ) from error
    return folder / PARTS


def clear(folder: Path) -> None:
    """Remove a former page and its parts."""
    for name in (INDEX, TRACE):
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _is_ours(page: Path) -> bool:
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(_HEAD_BYTES)
    except OSError:
        return False
