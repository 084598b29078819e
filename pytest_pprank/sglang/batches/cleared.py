"""Records which code sets a field of a batch to None, for the check that finds the field empty."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from pytest_pprank.frames import is_caller_code
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.sites import qualified

NOTES = "_pprank_cleared"
"""Attribute of a batch: for each field that was cleared and not filled again, by which code."""

_BATCHES = (
    ("sglang.srt.managers.schedule_batch", "ScheduleBatch"),
    ("sglang.srt.model_executor.forward_batch_info", "ForwardBatch"),
)


def watch_batches() -> None:
    """Record from now on, in this process, where SGLang's or a test's code clears a field."""
    for module, name in _BATCHES:
        watch(need(import_module(module), name))


def watch(batch_class: type) -> None:
    """Record for all instances of `batch_class` where a non-None field becomes None."""
    assign: Any = batch_class.__setattr__
    if assign is not object.__setattr__:
        return  # already watched, or SGLang defines its own __setattr__

    def noting(batch: object, name: str, value: object) -> None:
        fields = vars(batch)
        if value is None:
            if fields.get(name) is not None:
                _note(batch, name, sys._getframe(1))
        elif NOTES in fields and name in fields[NOTES]:
            fields[NOTES] = {field: by for field, by in fields[NOTES].items() if field != name}
        assign(batch, name, value)

    batch_class.__setattr__ = noting  # type: ignore[assignment]


def cleared_by(batch: object, field: str) -> str:
    """Return which function set a field to None, and its call site; "" if that was not seen."""
    return str(vars(batch).get(NOTES, {}).get(field, ""))


def _note(batch: object, field: str, frame: FrameType) -> None:
    if not is_caller_code(frame.f_code.co_filename):
        return  # a batch that this plugin builds, step by step
    by = f"{qualified(frame)} ({_line(frame)})"
    if frame.f_back is not None and is_caller_code(frame.f_back.f_code.co_filename):
        by += f", called at {_line(frame.f_back)}"
    # a new dict each time: a copy of the batch may share the old one
    vars(batch)[NOTES] = {**vars(batch).get(NOTES, {}), field: by}


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
