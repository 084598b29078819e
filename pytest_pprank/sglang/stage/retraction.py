"""Where SGLang looks whether there is KV for the next token of all that run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.rank.patches import patch
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.stage.event_loop import iteration_of_this_thread

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ScheduleBatch


def let_kv_run_out(runs_out: Callable[[], bool]) -> Callable[[], object]:
    """Have ``ScheduleBatch.check_decode_mem`` say no where `runs_out()`; returns what ends that.

    Asked in event loops, for two requests or more (of a single one SGLang would give up the only
    one), and not again while SGLang looks how many it must retract (``selected_indices``).
    """
    batch_class = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    check = need(batch_class, "check_decode_mem")

    def check_decode_mem(self: ScheduleBatch, *args: object, **kwargs: object) -> bool:
        fits = check(self, *args, **kwargs)
        asked = "selected_indices" not in kwargs and iteration_of_this_thread() is not None
        return fits and not (asked and len(self.reqs) > 1 and runs_out())

    return patch(batch_class, "check_decode_mem", check_decode_mem)
