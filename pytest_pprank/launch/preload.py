"""What the fork server imports once, so that every later rank starts with it.

The fork server imports `launch.fork_server`, which calls `import_all`. With an entry
``module:function:argument`` the function is called after the import. A failure is kept, not
raised: the fork server would die with it, and the launcher could only say that something went
wrong.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from pytest_pprank.devices import visible_gpus
from pytest_pprank.devices.unstarted_cuda import driver_started, unstarted
from pytest_pprank.protocol.launcher import IMPORTING

_NOTE_SECONDS = 0.1

failures: dict[str, str] = {}
imported: list[str] = []
seconds = 0.0
cuda = ""
"""Where the imports have started CUDA, in words; "" if nowhere."""


class _Note:
    """A finder that finds nothing, and notes for whom it was asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if time.monotonic() >= self._next and package not in sys.stdlib_module_names:
            with suppress(OSError):
                self._path.write_text(package)
            self._next = time.monotonic() + _NOTE_SECONDS
        return None


def _import(entry: str) -> None:
    module, *call = entry.split(":")
    try:
        loaded = import_module(module)
        if call:
            function, argument = call
            getattr(loaded, function)(argument)
        imported.append(entry)
    except Exception:
        failures[entry] = traceback.format_exc()


def import_all(entries: list[str], optional: list[str], folder: str) -> None:
    """Import each entry, keeping the traceback of those that fail unless they are optional.

    The file IMPORTING in `folder` says meanwhile which package it is.
    Modules stay for ever: the garbage collector need not look at them, neither now nor in the
    ranks, where looking would also copy the memory that they share with the fork server.
    """
    global seconds, cuda
    start = time.perf_counter()
    gc.disable()
    noting = _Note(Path(folder, IMPORTING))
    sys.meta_path.insert(0, noting)
    with unstarted() if visible_gpus() else nullcontext() as answers:
        for entry in (*entries, *optional):
            _import(entry)
    cuda = (answers.started if answers else "") or cuda_started()
    with suppress(ValueError):
        sys.meta_path.remove(noting)
    for entry in optional:
        failures.pop(entry, None)
    gc.freeze()
    gc.enable()
    seconds = time.perf_counter() - start


def describe(answer: Connection) -> None:
    """Run in a process forked from the fork server: tell what a rank inherits from it.

    Threads do not survive a fork, so they are looked up in the parent (the fork server) through
    /proc.
    """
    threads = tuple(threads_of(os.getppid()))
    answer.send((seconds, tuple(imported), failures, threads, cuda))


def threads_of(pid: int) -> list[str]:
    """Return the names of a process's threads, the main one first."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [(task / "comm").read_text().strip() for task in tasks]


def cuda_started() -> str:
    """Say that CUDA was started in this process, where nobody has seen who did it; else ""."""
    torch = sys.modules.get("torch")
    started = (torch is not None and torch.cuda.is_initialized()) or driver_started()
    return "by code that did not ask torch" if started else ""
