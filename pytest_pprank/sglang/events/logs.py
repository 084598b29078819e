"""What SGLang logs, as events. Needs neither torch nor SGLang."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events.types import LogRecord, Stack
from pytest_pprank.sglang.static.release import NO_NCCL

LOGGER = "sglang"
"""SGLang's loggers are below this one."""

SWALLOWED = (
    "failed to",
    "will be disabled",
    "treating as undone",
    "traceback (most recent call last)",
    "memory leak",
    "metadata corruption",
    "unexpected poll state",
)
"""Words (in lower case) of warnings that say: something went wrong, and nobody will be told."""

HARMLESS = (
    # SGLang's CPU path without its compiled kernels, on every start
    "failed to import",
    # what an abort of a request in transfer leads to, on purpose
    "aborted by abortreq",
    # asked for once per start on a machine without a GPU
    "failed to get device",
    # 0.5.13 to 0.5.16 warn of a model without generation_config.json; later ones call it normal
    "failed to load generation config",
    # our own doing, where torch is a build for CUDA and the device is none
    NO_NCCL,
)
_DEPTH = 6


def is_swallowed(record: LogRecord) -> bool:
    """Whether SGLang says that something went wrong, which it has caught and goes on after."""
    words = record.text.lower()
    if any(known in words for known in HARMLESS):
        return False
    told = any(mark in words for mark in SWALLOWED)
    return told or record.is_error or record.has_traceback


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
