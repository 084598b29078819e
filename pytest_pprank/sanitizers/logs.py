"""SGLang's swallowed failures: what it logs, and goes on as if nothing had happened.

The founding bug (PR 26883) was such a warning: "Failed to profile prefill latency", and dynamic
chunking was off for everybody.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import ClassVar

from pytest_pprank.sanitizers.base import Sanitizer
from pytest_pprank.sglang.static import NO_NCCL
from pytest_pprank.wire.ledger_file import Site

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
_CURE = (
    "SGLang has caught this and goes on; a user sees it only as lost speed, memory or requests. If "
    "it is meant to happen here, allow it with a reason (--pprank-sanitize-allow)"
)


class Logs(Sanitizer):
    """Listens to the loggers below ``sglang``."""

    name: ClassVar[str] = "logs"

    def begin(self) -> None:
        handler = _Handler(self)
        logger = logging.getLogger("sglang")
        logger.addHandler(handler)
        self.watch.at_end(lambda: logger.removeHandler(handler))

    def take(self, record: logging.LogRecord) -> None:
        """Look at a record."""
        text = record.getMessage()
        words = text.lower()
        if any(known in words for known in HARMLESS):
            return
        swallowed = any(mark in words for mark in SWALLOWED)
        if not (swallowed or record.levelno >= logging.ERROR or _has_traceback(record)):
            return
        line = Site(record.pathname, record.lineno, record.funcName or "?")
        raised = _raised(record)
        self.watch.report(
            f"SGLang logged at level {record.levelname}: {text.rstrip()}"
            + (f"\nwhile handling {raised[0]}" if raised[0] else ""),
            (line, *raised[1]),
            _CURE,
        )


class _Handler(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.INFO)
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        self._logs.watch.guard(self._logs.take, record)


def _has_traceback(record: logging.LogRecord) -> bool:
    return bool(record.exc_info and record.exc_info[0] is not None)


def _raised(record: logging.LogRecord) -> tuple[str, tuple[Site, ...]]:
    """Return what is being handled while a record is logged, with where it was raised."""
    error = record.exc_info[1] if record.exc_info else None
    error = error or sys.exc_info()[1]
    if error is None:
        return "", ()
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    sites = tuple(Site(f.filename, f.lineno or 0, f.name) for f in reversed(frames))
    return f"{type(error).__name__}: {error}", sites
