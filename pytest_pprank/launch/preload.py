"""What the fork server imports once, so that every later rank starts with it imported.

The fork server imports `launch.fork_server`, which calls `import_all`. For an entry
``module:function:argument`` the function is called after the import. An error is kept and not
raised: it would end the fork server, and the launcher could not say why.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from pytest_pprank.devices import visible_gpus
from pytest_pprank.devices.unstarted_cuda import driver_started, hidden, unstarted
from pytest_pprank.protocol.launcher import IMPORTING

_NOTE_SECONDS = 0.1
_THREADS_S = 5.0
"""How long a thread that an import has started may take to end by itself."""

failures: dict[str, str] = {}
imported: list[str] = []
seconds = 0.0
cuda = ""
"""Where the imports have started CUDA, in words; "" if nowhere."""
threads: dict[str, str] = {}
"""See `_Note`."""


class _Note:
    """A finder that finds nothing, and writes down the packages it is asked for.

    `threads`: the packages during whose import this process was first seen to have these threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0
        self._last = "Python"
        self.threads: dict[str, str] = {}

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if time.monotonic() >= self._next and package not in sys.stdlib_module_names:
            with suppress(OSError):
                self._path.write_text(package)
            self.look_at_threads()
            self._last = package
            self._next = time.monotonic() + _NOTE_SECONDS
        return None

    def look_at_threads(self) -> None:
        """Note which threads are there that were not when this was called before."""
        for name in threads_of(os.getpid())[1:]:
            self.threads.setdefault(name, self._last)


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
    """Import each entry, and keep the traceback of a failure unless the entry is optional.

    Meanwhile the file IMPORTING in `folder` has the name of the package being imported. The modules
    are never freed, so they are excluded from garbage collection (`gc.freeze`), here and in the
    ranks. There a collection would also copy the memory shared with the fork server.
    """
    global seconds, cuda
    start = time.perf_counter()
    gc.disable()
    noting = _Note(Path(folder, IMPORTING))
    sys.meta_path.insert(0, noting)
    with unstarted() if visible_gpus() else hidden() as answers:
        for entry in (*entries, *optional):
            _import(entry)
    cuda = (answers.started if answers else "") or cuda_started()
    noting.look_at_threads()
    threads.update(noting.threads)
    with suppress(ValueError):
        sys.meta_path.remove(noting)
    for entry in optional:
        failures.pop(entry, None)
    gc.freeze()
    gc.enable()
    seconds = time.perf_counter() - start


def describe(answer: Connection) -> None:
    """Send what a rank inherits from the fork server; runs in a process forked from it.

    Threads do not survive a fork, so the parent's (the fork server's) are read from /proc.
    """
    first, *others = _lasting_threads(os.getppid())
    words = [f"{name}, {_since(name)}" for name in others]
    answer.send((seconds, tuple(imported), failures, (first, *words), cuda))


def _since(thread: str) -> str:
    package = threads.get(thread)
    return f"from the import of {package} or a package behind it" if package else "after them"


def _lasting_threads(pid: int) -> list[str]:
    """As `threads_of`, when those that are about to end have ended (CUDA's driver has such)."""
    deadline = time.monotonic() + _THREADS_S
    while len(threads := threads_of(pid)) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    return threads


def threads_of(pid: int) -> list[str]:
    """Return the names of a process's threads, the main one first."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [(task / "comm").read_text().strip() for task in tasks]


def cuda_started() -> str:
    """Return that CUDA was started in this process by unknown code, in words; empty if not."""
    torch = sys.modules.get("torch")
    started = (torch is not None and torch.cuda.is_initialized()) or driver_started()
    return "by code that did not ask torch" if started else ""
