"""SGLang's operators that have an implementation per platform, and its overlap event."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.seams import need

_READS_DONE = ("shared_read_done_event", "war_fastpath_read_done_event")
"""Attributes of ModelRunner, from 0.5.14 on; up to 0.5.17 it has the second name."""


def fused_operator() -> Any:
    """Return SGLang's base class of operators with several implementations; None before 0.5.21."""
    with suppress(ModuleNotFoundError):
        found = import_module("sglang.kernels.fused_op").BaseFusedOp
        return found if hasattr(found, "register_oot_forward") else None
    return None


def overlaps(model_runner: Any) -> bool:
    """Return whether this runner's Scheduler prepares a batch while another batch runs."""
    args = need(model_runner, "server_args")
    return need(args, "pp_size") == 1 and not need(args, "disable_overlap_schedule")


def publish_reads_done(model_runner: Any, event: Any) -> bool:
    """Give the Scheduler an event after which the starting forward no longer reads shared memory.

    Returns False if this SGLang (up to 0.5.13) always waits for the whole forward.
    """
    for name in _READS_DONE:
        if hasattr(model_runner, name):
            setattr(model_runner, name, event)
            return True
    return False
