"""The launcher's process as the controller holds it, when it has started the process itself."""

from __future__ import annotations

import subprocess
from typing import Protocol

from pytest_pprank.protocol.launcher import LauncherSpec


class LauncherProcess(Protocol):
    """What the controller needs of a launcher, however that came into being."""

    @property
    def pid(self) -> int:
        """Process id; also its process group. 0 while there is none yet."""

    @property
    def running(self) -> bool:
        """Whether it still runs, or is still to come."""

    def close(self) -> None:
        """Let go of it, when it is gone."""


class OwnProcess:
    """A child of the controller. `spec` is its first line of standard input."""

    def __init__(self, process: subprocess.Popen[bytes], spec: LauncherSpec) -> None:
        self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(spec.to_json().encode() + b"\n")
            process.stdin.close()
        except BaseException:  # Ctrl-C: whoever is not told of this process could not end it
            process.kill()
            process.wait()
            raise

    @property
    def pid(self) -> int:
        """Process id; also its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs; one that does not is no zombie after this."""
        return self._process.poll() is None

    def close(self) -> None:
        """Wait for its end."""
        self._process.wait()
