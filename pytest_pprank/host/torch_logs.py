"""Make torch's loggers cheap to listen to."""

from __future__ import annotations

import logging


def join_torch_loggers() -> None:
    """Let torch's loggers pass what they are told on to the one named ``torch``.

    torch gives some forty loggers a handler of their own and cuts each off from its parent, all
    alike (torch/_logging/_internal.py). pytest attaches itself to every such logger in each phase
    of each test: more work than all the rest of a small test. What is logged, and where it is
    shown, stays the same; a logger that was set up in another way is left alone.
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
    """What handlers of a logger have in common with others that print the same."""
    return [
        (type(h), type(h.formatter), h.level, getattr(h, "stream", None)) for h in logger.handlers
    ]
