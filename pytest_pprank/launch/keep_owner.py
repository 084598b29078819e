"""Kept launchers of one process: no other run uses them, and they end with it.

A command that starts many runs names itself in the variable `VARIABLE` of their environment. Their
launchers are then kept for this process only, beside those of ``--pprank-keep`` without an owner.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pytest_pprank.launch import keep_folder
from pytest_pprank.launch.keep_identity import hashed
from pytest_pprank.launch.lease_files import process_start

VARIABLE = "PPRANK_KEEP_FOR"
POLL_S = 2.0
"""How often a kept process looks whether its owner still runs, in seconds."""
_OF_ONE_RUN = ("PPRANK_REGRESSIONS_FOLDER", "PPRANK_REVERTS_REACHED")


def this_process() -> str:
    """Return the value of the variable for runs of this process."""
    return f"{os.getpid()} {process_start(os.getpid())}"


def owner_of(environment: Mapping[str, str]) -> str:
    """Return whose kept launchers a run uses; "" for those that all runs of the user share."""
    return environment.get(VARIABLE, "")


def is_gone(owner: str) -> bool:
    """Return whether the process that owns a kept launcher has ended."""
    if not owner:
        return False
    pid, _, start = owner.partition(" ")
    return str(process_start(int(pid))) != start


def without_one_run(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a kept process: what marks a run must not mark it."""
    return {name: value for name, value in environment.items() if name not in _OF_ONE_RUN}


def end_all(owner: str) -> None:
    """End the kept launchers of an owner."""
    with keep_folder.locked():
        for folder, note in list(keep_folder.keepers()):
            variables = note.identity.get("environment variable", {})
            if variables.get(VARIABLE) == hashed(owner):
                keep_folder.end(folder, note)
