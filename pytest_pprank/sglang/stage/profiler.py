"""Run SGLang's dynamic-chunk profiler under observation, on a clock that does not jitter.

SGLang swallows what goes wrong there: it logs a warning and turns dynamic chunking off. Only stage
0 runs forwards; the other stages wait for its samples.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pytest_pprank.sglang.batches.fields import FORWARD_BATCH
from pytest_pprank.sglang.batches.materialize import (
    BadField,
    check_batch,
    note_origin,
    note_staging,
)
from pytest_pprank.sglang.compat.profiler import no_profiler, profiler_home, run_again
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.sites import qualified

_SWALLOWED = ("failed to profile", "failed to fit", "will be disabled")

# Seconds for a forward of n tokens: quadratic with a > 0, as the fit demands; 3.4 ms at n = 256.
_A, _B, _C = 1e-8, 1e-5, 2e-4


@dataclass
class ProfilerRun:
    """What one run of the profiler did on this rank.

    `findings`: fields that were wrong at a forward's entry (each field once). `warnings`: what
    was raised or logged, and swallowed by SGLang. `forwards`: how many forwards it ran here, from
    which place (`caller`: file, line and function; of the one with findings, if there is one).
    `entry`: class and method of the profiler, where it was called.
    """

    findings: list[BadField] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    forwards: int = 0
    caller: str = ""
    entry: str = ""
    ran: bool = False

    def problems(self) -> list[str]:
        """Return what went wrong in this run, in words, the earliest cause first."""
        return [
            *(f"at the forward's entry, {finding}" for finding in self.findings),
            *([f"that forward was called at {self.caller}"] if self.findings else []),
            *(f"SGLang swallowed: {warning}" for warning in self.warnings),
        ]

    def add(self, findings: list[BadField]) -> None:
        seen = {(f.object, f.field) for f in self.findings}
        self.findings += [f for f in findings if (f.object, f.field) not in seen]


class VirtualTime:
    """Stands in for the module ``time`` where the profiler looks for it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def forward_of(self, tokens: int) -> None:
        """Let as much time pass as a forward of `tokens` takes in the model of this clock."""
        self.now += _A * tokens * tokens + _B * tokens + _C

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def watch_profiler() -> Iterator[ProfilerRun]:
    """Observe each run of the profiler inside the ``with`` block, on a virtual clock."""
    run = ProfilerRun()
    home = profiler_home()
    with ExitStack() as stack:
        stack.enter_context(_captured_warnings(run))
        if home is not None:
            entry = getattr(home.owner, home.method)

            def observed(*args: Any, **kwargs: Any) -> Any:
                run.ran, run.entry = True, str(home)
                with profiler_clock() as clock, _observed_forwards(run, clock):
                    try:
                        return entry(*args, **kwargs)
                    except Exception as error:  # up to 0.5.19 SGLang logs it without its type
                        run.warnings.append(_where_raised(error))
                        raise

            stack.enter_context(replaced(home.owner, home.method, observed))
        yield run


@contextmanager
def profiler_clock() -> Iterator[VirtualTime]:
    """Give the profiler's module a clock that only its forwards move.

    On a tiny model the real latencies are noise and the fit fails at random (FACTS).
    """
    home = profiler_home()
    if home is None:
        raise no_profiler()
    need(home.module, "time")
    clock = VirtualTime()
    with replaced(home.module, "time", clock):
        yield clock


def run_profiler(scheduler: Any) -> ProfilerRun:
    """Run the profiler again through SGLang's own entry. A meeting of all stages."""
    with watch_profiler() as run:
        run_again(scheduler)
    return run


def profiler_name() -> str:
    """Return class and method of the installed SGLang's profiler, empty without one."""
    home = profiler_home()
    return "" if home is None else str(home)


def dynamic_chunking_enabled(scheduler: Any) -> bool:
    """Say whether the server args ask for dynamic chunking on more than one stage."""
    args = need(scheduler, "server_args")
    return bool(need(args, "enable_dynamic_chunking")) and int(need(args, "pp_size")) > 1


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set ``owner.name`` for the time of the block, keeping how it was declared."""
    original = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _observed_forwards(run: ProfilerRun, clock: VirtualTime) -> Iterator[None]:
    """Check each batch at ModelRunner.forward's entry, and let the clock pass."""
    schedule_batch = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    info = import_module("sglang.srt.model_executor.forward_batch_info")
    forward_batch = need(info, "ForwardBatch")
    runner = need(import_module("sglang.srt.model_executor.model_runner"), "ModelRunner")
    prepare = need(schedule_batch, "prepare_for_extend")
    init_new = need(forward_batch, "init_new")
    forward = need(runner, "forward")

    def prepare_for_extend(batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = prepare(batch, *args, **kwargs)
        note_staging(batch)
        return result

    def make(cls: type, batch: Any, *args: Any, **kwargs: Any) -> Any:
        made = init_new.__func__(cls, batch, *args, **kwargs)
        note_origin(made, batch)
        return made

    def enter(model_runner: Any, *args: Any, **kwargs: Any) -> Any:
        entering = kwargs["forward_batch"] if "forward_batch" in kwargs else args[0]
        run.forwards += 1
        run.caller = run.caller if run.findings else _place(sys._getframe(1))
        run.add(check_batch(entering, FORWARD_BATCH, torch.device(model_runner.device)))
        clock.forward_of(int(entering.extend_num_tokens or 0))
        return forward(model_runner, *args, **kwargs)

    with (
        replaced(schedule_batch, "prepare_for_extend", prepare_for_extend),
        replaced(forward_batch, "init_new", classmethod(make)),
        replaced(runner, "forward", enter),
    ):
        yield


@contextmanager
def _captured_warnings(run: ProfilerRun) -> Iterator[None]:
    handler = _Swallowed(run.warnings.append)
    logger = logging.getLogger("sglang")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Swallowed(logging.Handler):
    """Keeps the warnings by which SGLang says that it gave up on the profiler."""

    def __init__(self, keep: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._keep = keep

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if any(mark in message.lower() for mark in _SWALLOWED):
            self._keep(message)


def _place(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {qualified(frame)}"


def _where_raised(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return f"{type(error).__name__}: {error} ({place})"
