"""What a run has in /dev/shm carries its name, so that nothing can stay behind: semaphores of
multiprocessing, and what SGLang shares.

Python's resource tracker unlinks those that killed processes have left, but it is a process like
any other: killed itself, or slow, it leaves them in /dev/shm for ever.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from pytest_pprank.sglang.static.load_snapshot import remove_load_snapshots

_SHARED_MEMORY = Path("/dev/shm")


def name_semaphores(run: str) -> None:
    """Have this process, and all that multiprocessing starts from it, name semaphores after `run`.

    multiprocessing hands a process's configuration on to its children (BaseProcess.__init__).
    """
    config: dict[str, object] = getattr(multiprocessing.current_process(), "_config", {})
    config["semprefix"] = f"/{run}"


def remove_shared_memory(run: str) -> None:
    """Unlink all that the processes of a run have left in /dev/shm."""
    remove_semaphores(run)
    remove_load_snapshots(run)


def remove_semaphores(run: str) -> None:
    """Unlink what is left of them."""
    for file in _SHARED_MEMORY.glob(f"sem.{run}-*"):
        file.unlink(missing_ok=True)
