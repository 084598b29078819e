"""Collects what can be found out about ranks that are still inside a test when it is aborted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_pprank.controller.stacks import ask_for_stacks
from pytest_pprank.oplog.file import flight_recorder_file, ledger_file, read_ledger
from pytest_pprank.oplog.read.flight_recorder import read_dump
from pytest_pprank.oplog.read.wait_graph import summary
from pytest_pprank.report.stacks import fold
from pytest_pprank.report.verdicts import Detail


def look_at(workdir: Path, pids: dict[int, int], ranks: Sequence[int]) -> tuple[Detail, ...]:
    """Return titled blocks: stacks of the ranks in `pids`, and last operations of all `ranks`.

    `pids` maps a rank that is still inside the test to its process id.
    """
    stacks = ask_for_stacks(workdir, pids)
    operations = {rank: summary(read_ledger(ledger_file(workdir, rank))) for rank in ranks}
    dumps = {rank: read_dump(flight_recorder_file(workdir, rank)) for rank in pids}
    return stacks + fold("Operations", operations) + fold("NCCL flight recorder", dumps)
