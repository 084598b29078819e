"""Runs SGLang's dynamic-chunk profiler under observation, on a deterministic clock.

SGLang swallows exceptions of the profiler: it logs a warning and turns dynamic chunking off. Only
stage 0 runs forwards; the other stages wait for its samples.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_pprank.frames import Owner, caller
from pytest_pprank.sglang.batches.fields import FORWARD_BATCH
from pytest_pprank.sglang.batches.materialize import (
    BadField,
    check_batch,
    note_origin,
    note_staging,
)
from pytest_pprank.sglang.compat.profiler import no_profiler, profiler_home, run_again
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
from pytest_pprank.sglang.events.hook_points import HookCall, hook_points
from pytest_pprank.sglang.events.logs import is_swallowed, listen_to_logs
from pytest_pprank.sglang.events.sites import qualified
from pytest_pprank.sglang.events.types import LogRecord

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler

# Seconds for a forward of n tokens: quadratic with a > 0, as the fit needs; 3.4 ms at n = 256.
_A, _B, _C = 1e-8, 1e-5, 2e-4


@dataclass
class ProfilerRun:
    """The results of profiler runs on this rank.

    `findings`: fields that were wrong at a forward's entry (each field once). `warnings`: what
    SGLang raised or logged, and swallowed. `forwards`: how many forwards ran here; `caller`: file,
    line and function that called one (one with findings, if there is one). `entry`: class and
    method of the profiler, if it was called.
    """

    findings: list[BadField] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    forwards: int = 0
    caller: str = ""
    entry: str = ""
    ran: bool = False

    def problems(self) -> list[str]:
        """Return, in words, what went wrong, the earliest cause first."""
        return [
            *(f"at the forward's entry, {finding}" for finding in self.findings),
            *([f"that forward was called at {self.caller}"] if self.findings else []),
            *(f"SGLang swallowed: {warning}" for warning in self.warnings),
        ]

    def add(self, findings: list[BadField]) -> None:
        seen = {(f.object, f.field) for f in self.findings}
        self.findings += [f for f in findings if (f.object, f.field) not in seen]


class VirtualTime:
    """Replaces the module ``time`` in the profiler's module."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def forward_of(self, tokens: int) -> None:
        """Advance the clock by the modelled time of a forward of `tokens`."""
        self.now += _A * tokens * tokens + _B * tokens + _C

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@contextmanager
def watch_profiler() -> Iterator[ProfilerRun]:
    """Observe each run of the profiler inside the ``with`` block, on a virtual clock."""
    run = ProfilerRun()
    home = profiler_home()
    with pytest.MonkeyPatch.context() as patch, _swallowed_warnings(run):
        if home is not None:
            entry = getattr(home.owner, home.method)

            def observed(*args: object, **kwargs: object) -> object:
                run.ran, run.entry = True, str(home)
                with profiler_clock() as clock, _observed_forwards(run, clock):
                    try:
                        return entry(*args, **kwargs)
                    except Exception as error:  # up to 0.5.19 SGLang logs it without its type
                        run.warnings.append(_where_raised(error))
                        raise

            patch.setattr(home.owner, home.method, observed)
        yield run


@contextmanager
def profiler_clock() -> Iterator[VirtualTime]:
    """Give the profiler's module a clock that only its forwards advance.

    On a tiny model real latencies are noise, and the profiler's fit fails at random (FACTS).
    """
    home = profiler_home()
    if home is None:
        raise no_profiler()
    need(home.module, "time")
    clock = VirtualTime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home.module, "time", clock)
        yield clock


def run_profiler(scheduler: Scheduler) -> ProfilerRun:
    """Run the profiler again through SGLang's own entry point. A meeting of all stages."""
    with watch_profiler() as run:
        run_again(scheduler)
    return run


def profiler_name() -> str:
    """Return class and method of the installed SGLang's profiler; "" if it has none."""
    home = profiler_home()
    return "" if home is None else str(home)


def dynamic_chunking_enabled(scheduler: Scheduler) -> bool:
    """Return whether the server args enable dynamic chunking on more than one stage."""
    args = need(scheduler, "server_args")
    return bool(need(args, "enable_dynamic_chunking")) and int(need(args, "pp_size")) > 1


@contextmanager
def _observed_forwards(run: ProfilerRun, clock: VirtualTime) -> Iterator[None]:
    """Check each batch at ModelRunner.forward's entry, and advance the clock."""

    def enter(call: HookCall) -> None:
        entering = call.argument(1, "forward_batch")
        run.forwards += 1
        run.caller = run.caller if run.findings else _place(caller(sys._getframe(1), Owner.PLUGIN))
        run.add(check_batch(entering, FORWARD_BATCH, torch.device(call.args[0].device)))
        clock.forward_of(int(entering.extend_num_tokens or 0))

    with ExitStack() as stack:
        for seam, listener in (
            ("prepare_for_extend", lambda call: note_staging(call.args[0])),
            ("init_new", lambda made: note_origin(made.result, made.argument(1, "batch"))),
            ("forward", enter),
        ):
            stack.callback(hook_points.listen(seam, listener))
        yield


@contextmanager
def _swallowed_warnings(run: ProfilerRun) -> Iterator[None]:
    """Collect the warnings that SGLang logs when the profiler fails: from its call on."""

    def take(record: LogRecord) -> None:
        if run.ran and is_swallowed(record):
            run.warnings.append(record.text)

    end = listen_to_logs(take, lambda emit: emit())
    try:
        yield
    finally:
        end()


def _place(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {qualified(frame)}"


def _where_raised(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return f"{type(error).__name__}: {error} ({place})"
