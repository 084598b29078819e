"""``python -m pytest_pprank stop``: ends the launchers that --pprank-keep has kept."""

from __future__ import annotations

import argparse
from typing import Any

from pytest_pprank.launch import keep_folder


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "stop",
        help="end the launchers that --pprank-keep has kept",
        description="End this user's kept launchers, whatever environment they are for; runs that "
        "are under way go on. Exit code 0, also when there is none.",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """End each keeper and print which it was; return the exit code."""
    try:
        with keep_folder.locked():
            found = list(keep_folder.keepers())
            for folder, note in found:
                keep_folder.end(folder, note)
                print(f"ended: launcher {note}, of {note.python}")
    except keep_folder.KeepError as error:
        args.parser.error(str(error))
    if not found:
        print(f"no launcher is kept in {keep_folder.root()}")
    return 0
