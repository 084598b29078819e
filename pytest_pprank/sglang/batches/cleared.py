"""Who has set a field of a batch to None: noted as it happens, told by the check that meets it."""

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
"""Attribute of a batch: for each field that was cleared and not filled again, by whom."""

_BATCHES = (
    ("sglang.srt.managers.schedule_batch", "ScheduleBatch"),
    ("sglang.srt.model_executor.forward_batch_info", "ForwardBatch"),
)


def watch_batches() -> None:
    """Note from now on, in this process, where SGLang's or a test's code clears a field."""
    for module, name in _BATCHES:
        watch(need(import_module(module), name))


def watch(batch_class: type) -> None:
    """Note of all instances of `batch_class` where a field that holds something becomes None."""
    assign: Any = batch_class.__setattr__
    if assign is not object.__setattr__:
        return  # watched already, or SGLang does something of its own here

    def noting(batch: object, name: str, value: object) -> None:
        held = vars(batch)
        if value is None:
            if held.get(name) is not None:
                _note(batch, name, sys._getframe(1))
        elif NOTES in held and name in held[NOTES]:
            held[NOTES] = {field: by for field, by in held[NOTES].items() if field != name}
        assign(batch, name, value)

    batch_class.__setattr__ = noting  # type: ignore[assignment]


def cleared_by(batch: object, field: str) -> str:
    """Return who has set a field to None and from where that was called; empty where nobody was
    seen.
    """
    return str(vars(batch).get(NOTES, {}).get(field, ""))


def _note(batch: object, field: str, frame: FrameType) -> None:
    if not is_caller_code(frame.f_code.co_filename):
        return  # a batch that is built here, step by step
    by = f"{qualified(frame)} ({_line(frame)})"
    if frame.f_back is not None and is_caller_code(frame.f_back.f_code.co_filename):
        by += f", called at {_line(frame.f_back)}"
    # another dict each time: a copy of the batch may hold the old one
    vars(batch)[NOTES] = {**vars(batch).get(NOTES, {}), field: by}


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
