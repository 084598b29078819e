"""Looks at the ledgers of a running test, and how long what they say has stayed the same."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_pprank.oplog.file import Ledger, ledger_file, read_ledger
from pytest_pprank.oplog.read.wait_graph import InMeeting, Waits, explain_waits, left_over


@dataclass(frozen=True)
class Waiting:
    """Who waits for whom (see wait_graph.Waits); `seconds`: how long exactly so."""

    waits: Waits
    ledgers: Mapping[int, Ledger]
    seconds: float

    def standstill(self, inside: Collection[int]) -> str:
        """How the ranks `inside` have stopped each other: ``deadlock``, ``mismatch``, or not."""
        if self.waits.deadlock:
            return "deadlock"
        all_wait = all(self.ledgers[rank].waiting for rank in inside)
        return "mismatch" if self.waits.mismatch and all_wait else ""

    def wait_in_vain(self, inside: Collection[int]) -> bool:
        """Whether all ranks `inside` need, directly or not, ranks that have left the test."""
        return bool(inside) and self.waits.stuck >= set(inside)


class WaitWatch:
    """The ledgers of a worker group during one test."""

    def __init__(self, workdir: Path, world_size: int) -> None:
        self._workdir = workdir
        self._world_size = world_size
        self.cost = 0.0
        """Seconds that the last look took."""
        self._key: object = None
        self._since = 0.0

    def left_over(self) -> tuple[str, ...]:
        """Say, after the test, which operations have still to be met by another rank's."""
        return left_over(self._read())

    def look(self, gone: Mapping[int, str], meetings: Mapping[int, InMeeting]) -> Waiting:
        """Read the ledgers; `gone` says what became of ranks that are no longer inside, `meetings`
        which ones wait in a meeting.
        """
        begin = time.monotonic()
        ledgers = self._read()
        waits = explain_waits(ledgers, gone, meetings)
        now = time.monotonic()
        self.cost = now - begin
        if waits.key != self._key:
            self._key, self._since = waits.key, now
        return Waiting(waits, ledgers, now - self._since)

    def _read(self) -> dict[int, Ledger]:
        ranks = range(self._world_size)
        return {rank: read_ledger(ledger_file(self._workdir, rank)) for rank in ranks}
