"""Simulates that KV memory runs out when SGLang checks for the next token of running requests."""

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
    """Let ``ScheduleBatch.check_decode_mem`` return False if `runs_out()`; return what undoes this.

    Applies in event loops only, to batches of two requests or more (SGLang would abort a single
    one instead of retracting it), and not while SGLang counts how many requests it must retract
    (``selected_indices``).
    """
    batch_class = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    check = need(batch_class, "check_decode_mem")

    def check_decode_mem(self: ScheduleBatch, *args: object, **kwargs: object) -> bool:
        fits = check(self, *args, **kwargs)
        asked = "selected_indices" not in kwargs and iteration_of_this_thread() is not None
        return fits and not (asked and len(self.reqs) > 1 and runs_out())

    return patch(batch_class, "check_decode_mem", check_decode_mem)
