"""What can be found out about ranks that are still inside a test which is given up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_pprank.controller import flight_recorder
from pytest_pprank.controller.stacks import ask_for_stacks
from pytest_pprank.controller.verdicts import Detail
from pytest_pprank.controller.wait_graph import summary
from pytest_pprank.wire.ledger_file import flight_recorder_file, ledger_file, read_ledger


def look_at(workdir: Path, pids: dict[int, int], ranks: Sequence[int]) -> tuple[Detail, ...]:
    """Return titled blocks: the stacks of the ranks in `pids`, the last operations of all `ranks`.

    `pids` maps a rank that is still inside to its process id.
    """
    stacks = ask_for_stacks(workdir, pids)
    operations = tuple(_operations(workdir, rank) for rank in ranks)
    dumps = tuple(_flight_record(workdir, rank) for rank in pids)
    return stacks + tuple(detail for detail in operations + dumps if detail[1])


def _operations(workdir: Path, rank: int) -> Detail:
    return f"operations of rank {rank}", summary(read_ledger(ledger_file(workdir, rank)))


def _flight_record(workdir: Path, rank: int) -> Detail:
    text = flight_recorder.read_dump(flight_recorder_file(workdir, rank))
    return f"NCCL flight recorder of rank {rank}", text
