"""SGLang's operators that have an implementation for each platform."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.seams import need

_READS_DONE = ("shared_read_done_event", "war_fastpath_read_done_event")
"""Of ModelRunner, from 0.5.14; to 0.5.17 it had the second name."""


def fused_operator() -> Any:
    """Return SGLang's operator with several implementations (from 0.5.21), None without one."""
    with suppress(ModuleNotFoundError):
        found = import_module("sglang.kernels.fused_op").BaseFusedOp
        return found if hasattr(found, "register_oot_forward") else None
    return None


def overlaps(model_runner: Any) -> bool:
    """Whether the Scheduler of this model runner makes a batch ready while another one runs."""
    args = need(model_runner, "server_args")
    return need(args, "pp_size") == 1 and not need(args, "disable_overlap_schedule")


def publish_reads_done(model_runner: Any, event: Any) -> bool:
    """Tell the Scheduler behind what the forward that begins reads nothing any more of what they
    share; False where this SGLang (to 0.5.13) always waits for the whole forward.
    """
    for name in _READS_DONE:
        if hasattr(model_runner, name):
            setattr(model_runner, name, event)
            return True
    return False
