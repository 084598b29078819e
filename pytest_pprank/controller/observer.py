"""Looks at the ranks of a running test from outside: what its state machine asks for."""

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
from pytest_pprank.oplog.read.wait_graph import InMeeting, explain_waits, left_over
from pytest_pprank.protocol.messages import KillGroup

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup


class Observer:
    """The eyes of a test run: files, processes and the end of its group."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group

    def answer(self, query: Query) -> QueryResult:
        """Do what `query` asks for."""
        if isinstance(query, ReadLedgers):
            return self.ledgers(query.gone, query.meetings)
        if isinstance(query, AwaitEnd):
            return self._await_end(query)
        ranks = self._group.ranks
        if isinstance(query, FindStopped):
            return StoppedFound({rank for rank in query.ranks if is_stopped(ranks[rank].pid)})
        return Debugged({rank for rank, peer in ranks.items() if is_traced(peer.pid)})

    def ledgers(self, gone: Mapping[int, str], meetings: Mapping[int, InMeeting]) -> LedgersRead:
        """Say who waits for whom; see ReadLedgers."""
        begin = time.monotonic()
        ledgers = self._read()
        waits = explain_waits(ledgers, gone, meetings)
        blocked = frozenset(rank for rank, ledger in ledgers.items() if ledger.waiting)
        return LedgersRead(waits, blocked, time.monotonic() - begin)

    def left_over(self) -> tuple[str, ...]:
        """Say, after the test, which operations have still to be met by another rank's."""
        return left_over(self._read())

    def _read(self) -> dict[int, Ledger]:
        workdir = self._group.workdir
        ranks = range(self._group.world_size)
        return {rank: read_ledger(ledger_file(workdir, rank)) for rank in ranks}

    def _await_end(self, query: AwaitEnd) -> EndAwaited:
        if query.forced:
            self._group.send_to_launcher(KillGroup(self._group.name))
        return EndAwaited(self._group.wait_ended(query.seconds), query.forced)
