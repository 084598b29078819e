"""--pprank-attach: this rank waits for a client of the debug adapter protocol, by debugpy."""

from __future__ import annotations

import os
import pdb
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import pytest

from pytest_pprank.protocol.channel import LOOPBACK
from pytest_pprank.protocol.terminal import attached_file

_POLL_SECONDS = 0.2


class _Debugpy(Protocol):
    """What is used of debugpy."""

    def configure(self, *, subProcess: bool) -> None: ...

    def listen(self, address: tuple[str, int]) -> tuple[str, int]: ...

    def wait_for_client(self) -> None: ...

    def is_client_connected(self) -> bool: ...

    def breakpoint(self) -> None: ...


class Attach:
    """Listens for a client. While one is attached, or waited for, a file says so.

    Because of that file the deadlines stand still (controller.observer).
    """

    def __init__(self, workdir: Path, rank: int) -> None:
        self._file = attached_file(workdir, rank)
        self._debugpy: _Debugpy | None = None
        self._waited = False
        self._here = threading.Event()

    def listen(self) -> str:
        """Listen on a free port; return the address, as ``host:port``."""
        # a warning about what pdb would not care about, in every rank
        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        self._debugpy = debugpy = cast(_Debugpy, import_module("debugpy"))
        debugpy.configure(subProcess=False)  # it would change how tests and SGLang start processes
        host, port = debugpy.listen((LOOPBACK, 0))
        sys.breakpointhook = debugpy.breakpoint
        for module in (pdb, pytest):
            module.set_trace = debugpy.breakpoint  # type: ignore[attr-defined]
        threading.Thread(target=self._pprank_service, name="pprank-attach", daemon=True).start()
        return f"{host}:{port}"

    def wait(self) -> None:
        """Wait for a client before the first test; later calls do nothing."""
        if self._debugpy is None or self._waited:
            return
        self._waited = True
        self._file.touch()
        self._debugpy.wait_for_client()
        self._here.set()

    def _pprank_service(self) -> None:  # see frames.SERVICE
        """Keep the file as long as a client is attached."""
        assert self._debugpy is not None
        self._here.wait()
        while True:
            if not self._debugpy.is_client_connected():
                self._file.unlink(missing_ok=True)
            elif not self._file.exists():
                self._file.touch()
            threading.Event().wait(_POLL_SECONDS)
