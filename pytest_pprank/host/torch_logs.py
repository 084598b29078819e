"""Makes torch's loggers cheap for pytest to capture."""

from __future__ import annotations

import logging


def join_torch_loggers() -> None:
    """Make torch's loggers propagate to the logger ``torch``, without handlers of their own.

    torch gives some forty loggers a handler each and disables their propagation, all alike
    (torch/_logging/_internal.py). pytest attaches a handler to every such logger in each phase of
    each test, which takes more time than everything else in a small test. What is logged, and where
    it is shown, stays the same. A logger that is configured differently is not changed.
    """
    signature = _signature(logging.getLogger("torch"))
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger) or not name.startswith("torch."):
            continue
        own_level = logger.level != logging.NOTSET
        if signature and not logger.propagate and not own_level and _signature(logger) == signature:
            logger.handlers.clear()
            logger.propagate = True


def _signature(logger: logging.Logger) -> list[object]:
    """Return the properties of a logger's handlers that decide what they print, and where."""
    return [
        (type(h), type(h.formatter), h.level, getattr(h, "stream", None)) for h in logger.handlers
    ]
