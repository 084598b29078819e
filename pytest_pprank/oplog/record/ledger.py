"""The ledger of this rank: every torch.distributed operation is noted, always, for all threads.

What is noted survives the rank (oplog.file), and is read by the controller. Nothing that
goes wrong in here may reach the operation that is being noted: it is told in the ledger instead,
and the controller then draws no conclusions from what the ledger lacks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pprank.oplog.file import Call, flight_recorder_file, ledger_file
from pytest_pprank.oplog.record.writer import LedgerWriter
from pytest_pprank.protocol.world import Groups

if TYPE_CHECKING:
    from pytest_pprank.oplog.record.hooks import SendInterceptor
    from pytest_pprank.oplog.record.recorder import LedgerRecorder

Listener = Callable[[str, Call, int], None]
_recorder: LedgerRecorder | None = None
_flight_record: Path | None = None


def start_ledger(
    workdir: Path, rank: int, plumbing: Sequence[str] = (), role: tuple[int, int] = (0, 0)
) -> None:
    """Note all torch.distributed operations of this process from here on; once is enough.

    `plumbing`: parts of file names whose lines matter less than those that call them; `role`: first
    rank and number of the ranks of this one's role. Without
    torch, or without room for the file, there is no ledger, and the controller says so.
    """
    global _recorder, _flight_record
    if _recorder is not None:
        return
    path = ledger_file(workdir, rank)
    try:
        from pytest_pprank.oplog.record.calls import CallDescriber
        from pytest_pprank.oplog.record.hooks import install
        from pytest_pprank.oplog.record.recorder import LedgerRecorder

        recorder = LedgerRecorder(LedgerWriter(path, rank), CallDescriber(plumbing, role))
    except (ImportError, OSError):
        with suppress(OSError):
            os.unlink(path)
        return
    install(recorder)
    _recorder, _flight_record = recorder, flight_recorder_file(workdir, rank)


def begin_test(serial: int) -> None:
    """Count operations anew: test `serial` begins."""
    if _recorder is not None:
        _recorder.begin_test(serial)


def unfinished() -> bool:
    """Whether an operation of this test was never waited for, as far as the ledger knows."""
    return _recorder is not None and bool(_recorder.unfinished())


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(event, call, number)` for each operation from here on; returns what ends that.

    Events: ISSUED, in the thread that issues it; REFUSED, where that call raises before anything
    has begun; FAILED, where it or a wait for it raises; DROPPED, some time after its handle is gone
    without having been waited for (not where a device works it off); CREATED for a group, also on
    a rank that is not to be in it. `number` is that of the operation on this rank. No ledger, no
    events.
    """
    if _recorder is None:
        return lambda: None
    return _recorder.listen(listener)


def erred() -> bool:
    """Whether an operation between ranks, or a wait for one, has raised in this test."""
    return _recorder is not None and _recorder.erred


def threads() -> frozenset[str]:
    """Return the names of the threads that have done operations in this test."""
    return frozenset() if _recorder is None else _recorder.threads


def groups() -> Groups | None:
    """Return the groups that this rank is in now (protocol.world); None where nothing is known."""
    return None if _recorder is None else _recorder.groups()


def world_ranks() -> tuple[int, ...]:
    """Return the ranks of torch's default group, as ranks of the worker group."""
    return () if _recorder is None else _recorder.world


def note_out_of_band(how: str, what: str) -> None:
    """Note a message that was sent past torch.distributed, and that nobody waits for."""
    if _recorder is not None:
        _recorder.ended(_recorder.store_wait(how, what))


def intercept_sends(
    interceptor: SendInterceptor,
) -> Callable[[], None]:
    """Have all sends go through `interceptor` (see oplog.record.hooks); returns what ends that.

    No ledger, no carrier.
    """
    if _recorder is None:
        return lambda: None
    from pytest_pprank.oplog.record import hooks as ledger_hooks

    ledger_hooks.interceptor = interceptor

    def end() -> None:
        ledger_hooks.interceptor = None

    return end


def open_calls() -> list[Call]:
    """Return the operations of this test that nobody has waited for, and whose handle lives.

    The listeners are told first of handles that are gone.
    """
    return [] if _recorder is None else _recorder.open_calls()


def update_ledger() -> None:
    """Bring the ledger up to date about operations that nobody waits for. For any thread.

    On NCCL, also leave the dump of its flight recorder. Raises nothing.
    """
    if _recorder is not None and _flight_record is not None:
        _recorder.update_ledger(_flight_record)
