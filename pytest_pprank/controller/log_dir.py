"""Writes everything the ranks print to files in --pprank-log-dir, rotated to limit their size."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from pytest_pprank.errors import UsageError

FILE_BYTES = 64 << 20
OLD_FILES = 4


class LogDir:
    """One file per rank and stream (``pp0.stdout.log``), continued by later worker groups.

    `prefix` separates the processes of one run (xdist's workers). An output listener. Raises
    UsageError if the folder cannot be written to.
    """

    def __init__(self, folder: Path, prefix: str = "", limit: int = FILE_BYTES) -> None:
        self._folder = folder
        self._prefix = prefix
        self._limit = limit
        self._files: dict[tuple[int, str], RotatingFileHandler] = {}
        self._test = ""
        self._headed: set[tuple[int, str]] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".{prefix}probe").touch()
            (folder / f".{prefix}probe").unlink()
        except OSError as error:
            raise UsageError(
                f"--pprank-log-dir: {str(folder)!r} is not a folder that can be written to "
                f"({error.strerror})"
            ) from error

    def begin(self, nodeid: str) -> None:
        """Begin a test: later output belongs to it."""
        self._test = nodeid
        self._headed.clear()

    def __call__(self, rank: int, stream: str, data: bytes) -> None:
        """Write what a rank has printed."""
        if (rank, stream) not in self._headed:
            self._headed.add((rank, stream))
            self._write(rank, stream, f"\n=== {self._test or 'start'} ===\n".encode())
        self._write(rank, stream, data)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self, rank: int, stream: str, data: bytes) -> None:
        file = self._files.get((rank, stream)) or self._open(rank, stream)
        text = data.decode("latin-1")  # keeps every byte
        file.emit(logging.LogRecord("", logging.INFO, "", 0, "%s", (text,), None))

    def _open(self, rank: int, stream: str) -> RotatingFileHandler:
        path = self._folder / f"{self._prefix}pp{rank}.{stream}.log"
        file = _RawLog(path, "a", self._limit, OLD_FILES, encoding="latin-1")
        self._files[rank, stream] = file
        return file


class _RawLog(RotatingFileHandler):
    terminator = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text without any prefix."""
        return record.getMessage()

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error: a full disk must not fail the test that filled it."""
