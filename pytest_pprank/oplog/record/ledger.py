"""The ledger of this rank: records every torch.distributed operation of all threads.

The record survives the rank (oplog.file) and is read by the controller. No error in here may reach
the operation that is being recorded. It is recorded in the ledger instead, and the controller then
draws no conclusions from what the ledger lacks.
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
    """Record all torch.distributed operations of this process from now on; later calls do nothing.

    `plumbing`: parts of the names of files that are passed over when a call's line is chosen: their
    callers say more. `role`: first rank, and number of ranks, of this rank's role. Without torch,
    or without disk space for the file, there is no ledger, and the controller says so.
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
    """Restart the counts of operations for test `serial`."""
    if _recorder is not None:
        _recorder.begin_test(serial)


def unfinished() -> bool:
    """Return whether an operation of this test was never waited for, as far as the ledger knows."""
    return _recorder is not None and bool(_recorder.unfinished())


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(event, call, number)` for each operation; return a function that ends this.

    Events:

    - ISSUED, in the thread that issues the operation;
    - REFUSED, if that call raises before anything has begun;
    - FAILED, if the operation, or a wait for it, raises;
    - DROPPED, some time after its handle was deleted without a wait (not for operations that a
      device executes by itself);
    - CREATED for a group, also on a rank that is not a member.

    `number` is that of the operation on this rank. Without a ledger there are no events.
    """
    if _recorder is None:
        return lambda: None
    return _recorder.listen(listener)


def tee(receiver: Callable[[bytes], None]) -> None:
    """Call `receiver` with the record of each operation that has ended, as the ledger has it."""
    if _recorder is not None:
        _recorder.tee(receiver)


def erred() -> bool:
    """Return whether an operation between ranks, or a wait for one, has raised in this test."""
    return _recorder is not None and _recorder.erred


def threads() -> frozenset[str]:
    """Return the names of the threads that have issued operations in this test."""
    return frozenset() if _recorder is None else _recorder.threads


def groups() -> Groups | None:
    """Return the groups that this rank is in now (protocol.world); None if unknown."""
    return None if _recorder is None else _recorder.groups()


def world_ranks() -> tuple[int, ...]:
    """Return the ranks of torch's default group, as ranks of the worker group."""
    return () if _recorder is None else _recorder.world


def note_out_of_band(how: str, what: str) -> None:
    """Record a message that was sent without torch.distributed, and that nothing waits for."""
    if _recorder is not None:
        _recorder.ended(_recorder.store_wait(how, what))


def intercept_sends(
    interceptor: SendInterceptor,
) -> Callable[[], None]:
    """Pass all sends through `interceptor` (oplog.record.hooks); return a function that ends this.

    Without a ledger nothing is intercepted.
    """
    if _recorder is None:
        return lambda: None
    from pytest_pprank.oplog.record import hooks as ledger_hooks

    ledger_hooks.interceptor = interceptor

    def end() -> None:
        ledger_hooks.interceptor = None

    return end


def open_calls() -> list[Call]:
    """Return the operations of this test that were never waited for, and whose handle exists.

    Listeners are first notified of deleted handles.
    """
    return [] if _recorder is None else _recorder.open_calls()


def update_device() -> None:
    """Record which of NCCL's operations still run. Callable from any thread; raises nothing.

    Ranks that wait for each other on their devices are found by this before a deadline.
    """
    if _recorder is not None:
        _recorder.update_device()


def update_ledger() -> None:
    """Record which of the operations that nobody waits for are done. Callable from any thread.

    On NCCL it also writes the dump of the flight recorder. Raises nothing.
    """
    if _recorder is not None and _flight_record is not None:
        _recorder.update_ledger(_flight_record)
