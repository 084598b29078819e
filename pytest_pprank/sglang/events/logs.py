"""Decodes SGLang's log records as events. Needs neither torch nor SGLang."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events.types import LogRecord, Stack
from pytest_pprank.sglang.static.release import NO_NCCL

LOGGER = "sglang"
"""The parent of SGLang's loggers."""

SWALLOWED = (
    "failed to",
    "will be disabled",
    "treating as undone",
    "traceback (most recent call last)",
    "memory leak",
    "metadata corruption",
    "unexpected poll state",
)
"""Words (in lower case) of warnings by which SGLang hides that something went wrong."""

HARMLESS = (
    # logged at every start on a CPU, where SGLang has no compiled kernels
    "failed to import",
    # the intended consequence of aborting a request in transfer
    "aborted by abortreq",
    # asked for once per start on a machine without a GPU
    "failed to get device",
    # 0.5.13 to 0.5.16 warn of a model without generation_config.json; later ones call it normal
    "failed to load generation config",
    # caused by this plugin if torch is a CUDA build and the device is not CUDA
    NO_NCCL,
)
_DEPTH = 6


def is_swallowed(record: LogRecord) -> bool:
    """Return whether SGLang reports a problem that it has caught and continues after."""
    words = record.text.lower()
    if any(known in words for known in HARMLESS):
        return False
    marked = any(mark in words for mark in SWALLOWED)
    return marked or record.is_error or record.has_traceback


def listen_to_logs(
    listener: Callable[[LogRecord], object], guard: Callable[..., None]
) -> Callable[[], None]:
    """Call `listener(event)` for SGLang's log records from INFO on; return what stops this.

    `guard` calls decoding and listener, and must not raise: SGLang would get the exception.
    """
    handler, logger = _Handler(listener, guard), logging.getLogger(LOGGER)
    logger.addHandler(handler)
    return lambda: logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, listener: Callable[[LogRecord], object], guard: Callable[..., None]) -> None:
        super().__init__(logging.INFO)
        self._listener, self._guard = listener, guard

    def emit(self, record: logging.LogRecord) -> None:
        self._guard(lambda: self._listener(log_record(record)))


def log_record(record: logging.LogRecord) -> LogRecord:
    """Decode one of SGLang's log records."""
    error, raised_at = _raised(record)
    return LogRecord(
        text=record.getMessage(),
        level=record.levelname,
        is_error=record.levelno >= logging.ERROR,
        site=Site(record.pathname, record.lineno, record.funcName or "?"),
        has_traceback=bool(record.exc_info and record.exc_info[0] is not None),
        error=error,
        raised_at=raised_at,
    )


def _raised(record: logging.LogRecord) -> tuple[str, Stack]:
    """Return the exception that is being handled during the logging, and where it was raised."""
    error = record.exc_info[1] if record.exc_info else None
    error = error or sys.exc_info()[1]
    if error is None:
        return "", ()
    walk = traceback.walk_tb(error.__traceback__)
    frames = traceback.StackSummary.extract(walk, lookup_lines=False)[-_DEPTH:]
    sites = tuple(Site(f.filename, f.lineno or 0, f.name) for f in reversed(frames))
    return f"{type(error).__name__}: {error}", sites
