"""``python -m pytest_pprank stacks``: where the ranks of this user's runs are, from outside."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pytest_pprank.controller.process_state import describe_silent, stacks_by_py_spy
from pytest_pprank.controller.stacks import stacks_of
from pytest_pprank.launch.client import run_folders
from pytest_pprank.protocol.group_note import GroupNote, RankNote, running_test
from pytest_pprank.report.stacks import trim_stacks


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "stacks",
        help="print the stacks of all ranks of this user's running worker groups",
        description="Print the Python stacks of all ranks of this user's running worker groups, "
        "with their tests; the ranks go on. By py-spy where that is installed (it shows more "
        "threads, and ranks that are stopped), otherwise by faulthandler in the ranks. Exit code "
        "0, also when nothing runs.",
    )
    parser.set_defaults(run=run, parser=parser)


def run(_args: argparse.Namespace) -> int:
    """Print the stacks, group by group; return the exit code."""
    found = False
    for folder, group in _groups():
        found = True
        test = running_test(folder)
        print(f"group {group.name} of pytest {group.pytest}: {test or 'between two tests'}")
        for rank, text in _stacks(folder, group).items():
            print(f"\n{rank.name} (pid {rank.pid}):\n{text.rstrip()}")
        print()
    if not found:
        print("no worker group of this user is running")
    return 0


def _groups() -> Iterator[tuple[Path, GroupNote]]:
    for folder in run_folders():
        for workdir in sorted(path for path in folder.iterdir() if path.is_dir()):
            note = GroupNote.read(workdir)
            if note is not None and any(rank.alive for rank in note.ranks):
                yield workdir, note


def _stacks(workdir: Path, group: GroupNote) -> dict[RankNote, str]:
    """Return the stacks of each rank: by py-spy, else by the rank's own faulthandler."""
    alive = [rank for rank in group.ranks if rank.alive]
    seen = {rank: text for rank in alive if (text := stacks_by_py_spy(rank.pid))}
    own = stacks_of(workdir, {rank.rank: rank.pid for rank in alive if rank not in seen})
    return {rank: seen.get(rank) or _own(own.get(rank.rank), rank) for rank in group.ranks}


def _own(text: str | None, rank: RankNote) -> str:
    if not rank.alive:
        return "(gone)"
    return describe_silent(rank.pid) if text is None else trim_stacks(text)
