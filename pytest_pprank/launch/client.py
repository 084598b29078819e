"""The controller's side of the launcher: starts it, exchanges messages with it, ends it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from pytest_pprank.errors import SEE_DOCTOR, GroupError
from pytest_pprank.launch import kept
from pytest_pprank.launch.keep_folder import KeepError
from pytest_pprank.launch.kept import Command, Keep, KeptProcess
from pytest_pprank.launch.owned_folder import OwnedFolder, remove_leftovers
from pytest_pprank.launch.process import LauncherProcess, OwnProcess
from pytest_pprank.launch.shared_memory import remove_shared_memory
from pytest_pprank.protocol.channel import Channel, ChannelClosed, Listener
from pytest_pprank.protocol.launcher import (
    IMPORTING,
    LAUNCHER_RANK,
    PRELOAD_VARIABLE,
    LauncherSpec,
)
from pytest_pprank.protocol.messages import Hello, Preloaded, Shutdown

_CODE = "from pytest_pprank.launch.launcher import main; main()"
_LEAVE_SECONDS = 10.0
_POLL_SECONDS = 0.01
# As torchrun does for several workers; and a library that starts threads cannot be forked.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOOPBACK_INTERFACE = "lo"
_LONGEST_FOLDER = 40
_FOLDER = "pprank-run-"


class LauncherClient:
    """Owns the launcher process, the listener all ranks connect to, and the run's folder.

    The fork server imports `preload`, and `optional` as far as possible (see launch.preload), with
    `environment` added to ours. With `keep` a kept launcher is used, if there is one.
    """

    def __init__(
        self,
        preload: Sequence[str],
        optional: Sequence[str] = (),
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        fork: bool = True,
        keep: Keep | None = None,
    ) -> None:
        for leftover in remove_leftovers(_FOLDER, short_folder()):
            remove_shared_memory(leftover.name)
        self._folder = OwnedFolder.make(_FOLDER, short_folder())
        self.run_dir = self._folder.path
        self.key = secrets.token_bytes(32)
        self.listener = Listener(self.key)
        self.preloaded: Preloaded | None = None
        self.channel: Channel | None = None
        self._waiting: list[tuple[Hello, Channel]] = []
        self._log = (self.run_dir / "launcher.log").open("wb")
        self._own = {**environment, PRELOAD_VARIABLE: json.dumps([[*preload], [*optional]])}
        self._spec = LauncherSpec(
            self.listener.address, self.key.hex(), str(self.run_dir), keep is not None or fork
        )
        self.kept = ""
        """What to tell the user about the kept launcher, or why there is none; else empty."""
        try:
            self._process = self._start() if keep is None else self._start_kept(keep)
        except BaseException:
            self.listener.close()
            self._log.close()
            self._folder.remove()
            raise

    def _environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            **self._own,
            "PYTHONPATH": _import_path(),
            # the fork server has its socket in a temporary folder, and may not live to remove it
            "TMPDIR": str(self.run_dir),
        }
        for name in _ONE_THREAD:
            environment.setdefault(name, "1")
        return environment

    def _start(self) -> LauncherProcess:
        process = subprocess.Popen(
            [sys.executable, *_interpreter_flags(), "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=self._environment(),
            # `python -c` imports from its working directory first. In the user's there may be a
            # source tree of this package, while the controller uses the installed one.
            cwd=self.run_dir,
            start_new_session=True,  # Ctrl-C must reach the controller only
        )
        return OwnProcess(process, self._spec)

    def _start_kept(self, keep: Keep) -> LauncherProcess:
        command = Command(
            (sys.executable, *_interpreter_flags()), self._environment(), json.dumps(self._own)
        )
        try:
            process = kept.launch(command, self._spec, keep)
        except KeepError as error:
            self.kept = f"launcher: not kept: {error}"
            return self._start()
        self.kept = process.message
        return process

    def rank_environment(self) -> dict[str, str | None]:
        """Return what a rank changes in the launcher's environment (None: variable is removed)."""
        return {
            # tests see the user's value, not the launcher's
            "PYTHONPATH": os.environ.get("PYTHONPATH"),
            PRELOAD_VARIABLE: None,
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE),
            "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", LOOPBACK_INTERFACE),
        }

    @property
    def pid(self) -> int:
        """Process id of the launcher; 0 while there is none yet.

        It is also the process group of the launcher and its fork server.
        """
        return self._process.pid

    def next_rank(self, timeout: float) -> tuple[Hello, Channel] | None:
        """Return the next rank that has connected, or None after `timeout` seconds."""
        if self._waiting:
            return self._waiting.pop(0)
        arrival = self.listener.arrived(timeout)
        if arrival is not None and arrival[0].rank == LAUNCHER_RANK:
            self.channel = arrival[1]
            return None
        return arrival

    @property
    def importing(self) -> str:
        """The package that the fork server is importing now, as far as known."""
        if isinstance(self._process, KeptProcess):
            return self._process.importing or "torch"
        try:
            return (self.run_dir / IMPORTING).read_text() or "torch"
        except OSError:
            return "torch"  # by the launcher, before it forks the fork server

    def wait_preloaded(
        self, timeout: float, tick: Callable[[str], None] = lambda _: None
    ) -> Preloaded:
        """Wait until the fork server has imported everything. Raises GroupError if it cannot.

        Meanwhile `tick` is called repeatedly with a description of what is waited for.
        """
        deadline = time.monotonic() + timeout
        while self.channel is None:
            arrival = self.next_rank(_POLL_SECONDS * 5)
            if arrival is not None:
                self._waiting.append(arrival)
            self._check_alive(deadline, "did not come up")
            tick(f"importing {self.importing}")
        while self.preloaded is None:
            if self.channel.wait(_POLL_SECONDS * 5):
                self._take_preloaded()
            self._check_alive(deadline, "did not finish its imports")
            tick(f"importing {self.importing}")
        return self.preloaded

    def _take_preloaded(self) -> None:
        assert self.channel is not None
        try:
            message = self.channel.receive()
        except ChannelClosed:
            return  # _check_alive reports the reason
        if isinstance(message, Preloaded):
            self.preloaded = message

    def _check_alive(self, deadline: float, what: str) -> None:
        if not self.alive:
            raise GroupError(f"the launcher process {what}:\n{self.log_tail()}\n{SEE_DOCTOR}")
        if time.monotonic() > deadline:
            raise GroupError(
                f"the launcher process {what} in time:\n{self.log_tail()}\n{SEE_DOCTOR}"
            )

    @property
    def alive(self) -> bool:
        """Whether the launcher runs. If none could be kept, this starts one for this run alone."""
        process = self._process
        if not process.running and isinstance(process, KeptProcess) and process.refused:
            self.kept = f"launcher: not kept: {process.refused}"
            process.close()
            self._process = self._start()
        return self._process.running

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that the launcher and the fork server have printed."""
        try:
            text = (self.run_dir / "launcher.log").read_text(errors="replace")
        except OSError as error:
            return f"(its log is gone: {error})"
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End the launcher, its fork server and everything they started; remove the folder."""
        if self.channel is not None:
            with suppress(ChannelClosed):  # it may have left before us
                self.channel.send(Shutdown())
        self.listener.close()
        self._wait_gone(time.monotonic() + _LEAVE_SECONDS)
        if self.channel is not None:
            self.channel.close()
        self._log.close()
        remove_shared_memory(self.run_dir.name)  # killed ranks could not remove theirs
        self._folder.remove()

    def _wait_gone(self, deadline: float) -> None:
        if self.channel is None:
            self._signal(signal.SIGKILL)
        while self._signal(0) and time.monotonic() < deadline + _LEAVE_SECONDS:
            _ = self._process.running  # a zombie would count as alive
            if time.monotonic() > deadline:
                # After the launcher was killed, its fork server and resource tracker end by
                # themselves. The tracker then unlinks semaphores, so it gets some time first.
                self._signal(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        self._process.close()

    def _signal(self, number: int) -> bool:
        try:
            if pid := self.pid:
                os.killpg(pid, number)
            return bool(pid)
        except ProcessLookupError:
            return False


def _import_path() -> str:
    """Return the PYTHONPATH with which the launcher and its fork server find this plugin.

    It has the user's entries too, but not all of sys.path: that has test folders, whose modules
    would hide the standard library's.
    """
    own = str(Path(__file__).parents[2])
    installed = own in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [os.path.abspath(p) for p in given if p] + ([] if installed else [own])
    return os.pathsep.join(paths)


def short_folder() -> str:
    """Return where to create the run's folder: paths of unix sockets have at most 107 bytes."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= _LONGEST_FOLDER else "/tmp"


def run_folders() -> list[Path]:
    """Return the folders of this user's runs, one for each pytest that has a launcher."""
    found = Path(short_folder()).glob(f"{_FOLDER}*")
    return sorted(path for path in found if path.lstat().st_uid == os.geteuid())


def _interpreter_flags() -> list[str]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags
