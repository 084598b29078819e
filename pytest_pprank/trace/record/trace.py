"""The trace of this rank. Without ``--pprank-report`` there is none, and nothing is recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pprank.oplog.file import Site
from pytest_pprank.oplog.record import ledger
from pytest_pprank.trace.file import Detail, trace_file

if TYPE_CHECKING:
    from pytest_pprank.trace.record.recorder import TraceRecorder

_recorder: TraceRecorder | None = None
_of_sglang = False


def start_trace(workdir: Path, rank: int, *, sglang: bool) -> None:
    """Record what this process does from now on. Call it after `start_ledger`.

    `sglang`: whether the tests of this worker group use SGLang.
    Without disk space for the file there is no trace, and the page says so.
    """
    global _recorder, _of_sglang
    from pytest_pprank.trace.record.recorder import TraceRecorder
    from pytest_pprank.trace.record.ring import RingWriter

    path = trace_file(workdir, rank)
    try:
        _recorder = TraceRecorder(RingWriter(path, rank))
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        return
    _of_sglang = sglang
    ledger.tee(_recorder.operation)


def recorder() -> TraceRecorder | None:
    """Return what records here; None if nothing does."""
    return _recorder


def of_sglang() -> bool:
    """Return whether events of SGLang are recorded."""
    return _of_sglang


def begin_test(serial: int) -> None:
    """Begin the trace of test `serial`."""
    if _recorder is not None:
        _recorder.begin_test(serial)


def note(
    kind: str,
    name: str,
    details: Mapping[str, Detail] | None = None,
    stack: Sequence[Site] = (),
) -> None:
    """Record something that happens now, if there is a trace (see `TraceRecorder.event`)."""
    if _recorder is not None:
        _recorder.event(kind, name, details, stack)


@contextmanager
def noted(kind: str, name: str, details: Mapping[str, Detail] | None = None) -> Iterator[None]:
    """Record that something lasts as long as the block, if there is a trace."""
    if _recorder is None:
        yield
        return
    number = _recorder.begin(kind, name, details)
    try:
        yield
    except BaseException as error:
        _recorder.end(number, {"raised": f"{type(error).__name__}: {error}"})
        raise
    _recorder.end(number)
