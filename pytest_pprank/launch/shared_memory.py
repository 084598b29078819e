"""Names everything of a run in /dev/shm after the run, so that nothing is left there.

That is multiprocessing's semaphores, and what SGLang shares. Python's resource tracker unlinks what
killed processes have left, but if it is killed itself, or too slow, it leaves them for ever.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from pytest_pprank.sglang.static.load_snapshot import remove_load_snapshots

SHARED_MEMORY = Path("/dev/shm")


def name_semaphores(run: str) -> None:
    """Let this process, and those multiprocessing starts from it, name semaphores after `run`.

    multiprocessing copies a process's configuration to its children (BaseProcess.__init__).
    """
    config: dict[str, object] = getattr(multiprocessing.current_process(), "_config", {})
    config["semprefix"] = f"/{run}"


def remove_shared_memory(run: str) -> None:
    """Unlink everything that the processes of a run have left in /dev/shm."""
    remove_semaphores(run)
    remove_load_snapshots(run)


def remove_semaphores(run: str) -> None:
    """Unlink the semaphores that are left of a run."""
    for file in SHARED_MEMORY.glob(f"sem.{run}-*"):
        file.unlink(missing_ok=True)
