"""What SGLang logs, as events. Needs neither torch nor SGLang."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events.types import LogRecord, Stack

LOGGER = "sglang"
"""SGLang's loggers are below this one."""
_DEPTH = 6


def listen_to_logs(
    listener: Callable[[LogRecord], object], guard: Callable[..., None]
) -> Callable[[], None]:
    """Call `listener(event)` for what SGLang logs, from INFO on; returns what ends that.

    Decoding and listening are called by `guard`, which must not raise: SGLang would see it.
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
    """Return what a record of SGLang's says."""
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
    """Return what is being handled while a record is logged, with where it was raised."""
    error = record.exc_info[1] if record.exc_info else None
    error = error or sys.exc_info()[1]
    if error is None:
        return "", ()
    walk = traceback.walk_tb(error.__traceback__)
    frames = traceback.StackSummary.extract(walk, lookup_lines=False)[-_DEPTH:]
    sites = tuple(Site(f.filename, f.lineno or 0, f.name) for f in reversed(frames))
    return f"{type(error).__name__}: {error}", sites
