"""The launcher's process as the controller sees it, if the controller has started it itself."""

from __future__ import annotations

import subprocess
from typing import Protocol

from pytest_pprank.protocol.launcher import LauncherSpec


class LauncherProcess(Protocol):
    """What the controller needs of a launcher, started by itself or kept."""

    @property
    def pid(self) -> int:
        """Process id; also its process group. 0 while there is none yet."""

    @property
    def running(self) -> bool:
        """Whether it runs, or has yet to start."""

    def close(self) -> None:
        """Release its resources, once it has ended."""


class OwnProcess:
    """A child of the controller. `spec` is its first line of standard input."""

    def __init__(self, process: subprocess.Popen[bytes], spec: LauncherSpec) -> None:
        self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(spec.to_json().encode() + b"\n")
            process.stdin.close()
        except BaseException:  # Ctrl-C: the caller would have no object by which to end the process
            process.kill()
            process.wait()
            raise

    @property
    def pid(self) -> int:
        """Process id; also its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs; reaps it if it has ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """Wait for its end."""
        self._process.wait()
