"""Answers the queries of a running test's state machine, by looking at the ranks from outside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_pprank.controller.process_state import is_stopped, is_traced
from pytest_pprank.controller.run.steps import (
    AwaitEnd,
    Debugged,
    EndAwaited,
    FindStopped,
    LedgersRead,
    Query,
    QueryResult,
    ReadLedgers,
    StoppedFound,
)
from pytest_pprank.oplog.file import Ledger, ledger_file, read_ledger
from pytest_pprank.oplog.read.wait_graph import InMeeting, explain_waits, left_over, waits_in
from pytest_pprank.protocol.messages import KillGroup
from pytest_pprank.protocol.terminal import attached_file

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup


class Observer:
    """Reads files and processes of a test's ranks, and waits for the end of their group."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group

    def answer(self, query: Query) -> QueryResult:
        """Return the result of `query`."""
        if isinstance(query, ReadLedgers):
            return self.ledgers(query.gone, query.meetings)
        if isinstance(query, AwaitEnd):
            return self._await_end(query)
        ranks = self._group.ranks
        if isinstance(query, FindStopped):
            return StoppedFound({rank for rank in query.ranks if is_stopped(ranks[rank].pid)})
        alive = {rank: peer.pid for rank, peer in ranks.items() if not peer.killed}
        return Debugged({rank for rank, pid in alive.items() if self._debugged(rank, pid)})

    def _debugged(self, rank: int, pid: int) -> bool:
        return is_traced(pid) or attached_file(self._group.workdir, rank).exists()

    def ledgers(self, gone: Mapping[int, str], meetings: Mapping[int, InMeeting]) -> LedgersRead:
        """Read all ledgers and work out who waits for whom (see ReadLedgers)."""
        begin = time.monotonic()
        ledgers = self._read()
        waits = explain_waits(ledgers, gone, meetings)
        blocked = frozenset(rank for rank, ledger in ledgers.items() if waits_in(ledger))
        return LedgersRead(waits, blocked, time.monotonic() - begin)

    def left_over(self) -> tuple[str, ...]:
        """Return, after the test, the operations that another rank has not matched yet."""
        return left_over(self._read())

    def _read(self) -> dict[int, Ledger]:
        workdir = self._group.workdir
        ranks = range(self._group.world_size)
        return {rank: read_ledger(ledger_file(workdir, rank)) for rank in ranks}

    def _await_end(self, query: AwaitEnd) -> EndAwaited:
        if query.forced:
            self._group.send_to_launcher(KillGroup(self._group.name))
        return EndAwaited(self._group.wait_ended(query.seconds), query.forced)
