"""Launchers forked by a kept process, as the controller sees them (see launch.keeper)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_pprank.launch import keep_folder, keep_owner
from pytest_pprank.launch.keep_folder import KeeperNote, KeepError
from pytest_pprank.launch.keep_identity import difference, identity, kind, per_run
from pytest_pprank.protocol.keeper import KeeperSpec, LaunchRequest
from pytest_pprank.protocol.launcher import IMPORTING, LauncherSpec

_CODE = "from pytest_pprank.launch.keeper import main; main()"
_ANSWER_SECONDS = 15.0
_CHUNK = 1 << 16
_BACKLOG = 64


@dataclass(frozen=True)
class Keep:
    """Asks for a kept launcher.

    `idle`: for how many seconds without runs it is kept. `words`: what it has imported, for users.
    """

    idle: float
    words: str


@dataclass(frozen=True)
class Command:
    """The command that would start the launcher of this run.

    `kind`: its purpose; launchers of several kinds may be kept.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    kind: str


class KeptProcess:
    """A launcher that a keeper forks or has forked; it runs while the connection is open."""

    def __init__(self, connection: socket.socket, folder: Path, message: str) -> None:
        self.message = message
        """What to tell the user: since when it is kept, or why it is a new one."""
        self.refused = ""
        """Why there will be no launcher; empty if there is no reason."""
        self._connection = connection
        self._folder = folder
        self._received = b""
        self._answer: dict[str, Any] = {}
        connection.setblocking(False)

    @property
    def pid(self) -> int:
        """Process id of the launcher, also its process group; 0 while there is none yet."""
        self._receive()
        return int(self._answer.get("pid", 0))

    @property
    def running(self) -> bool:
        """Whether it runs, or has yet to start."""
        return self._receive() and not self.refused

    @property
    def importing(self) -> str:
        """The package that the keeper is importing, as far as known."""
        with suppress(OSError):
            return (self._folder / IMPORTING).read_text()
        return ""

    def wait(self, seconds: float) -> bool:
        """Wait for the keeper's answer; return whether it has come."""
        deadline = time.monotonic() + seconds
        while not self._answer and self._receive() and time.monotonic() < deadline:
            time.sleep(0.005)
        return bool(self._answer)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _receive(self) -> bool:
        """Read what has arrived; return whether the other end is still open."""
        try:
            while data := self._connection.recv(_CHUNK):
                self._received += data
        except BlockingIOError:
            return self._parse_answer() or True
        except OSError:
            pass
        if not self._parse_answer():
            self.refused = self.refused or "it has ended"
        return False

    def _parse_answer(self) -> bool:
        if not self._answer and self._received.endswith(b"\n"):
            self._answer = json.loads(self._received)
            self.refused = self._answer.get("changed") or self._answer.get("refused") or ""
        return bool(self._answer)


def launch(command: Command, spec: LauncherSpec, keep: Keep) -> KeptProcess:
    """Get a launcher from a suitable keeper, or from a new one, which may still have to import.

    Raises KeepError if no launcher can be kept here.
    """
    request = LaunchRequest(asdict(spec), per_run(command.environment))
    owner = keep_owner.owner_of(command.environment)
    own_kind = kind(json.dumps([*command.arguments, command.kind, owner]))
    now = identity(command.environment)
    why = ""
    try:
        with keep_folder.locked():
            for folder, note in list(keep_folder.keepers()):
                if note.kind != own_kind:
                    continue
                why = difference(note.identity, now)
                if not why:
                    process, why = _ask(folder, note, request)
                    if process is not None:
                        return process
                why = f"; the one {note}, was ended: {why}"
                keep_folder.end(folder, note)
            return _start(
                command,
                request,
                keep,
                KeeperNote(0, 0, time.time(), own_kind, keep.words, sys.executable, now),
                why,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise KeepError(str(error)) from error


def _ask(folder: Path, note: KeeperNote, request: LaunchRequest) -> tuple[KeptProcess | None, str]:
    """Return the launcher, or why there is none. Does not wait for a keeper that still imports."""
    try:
        process = KeptProcess(_send(folder, request), folder, f"launcher: {_described(note)}")
    except OSError as error:
        return None, f"it cannot be reached ({error})"
    if note.ready and not process.wait(_ANSWER_SECONDS):
        process.close()
        return None, process.refused or f"it has not answered for {_ANSWER_SECONDS:g} s"
    if process.refused:
        process.close()
        return None, process.refused
    return process, ""


def _described(note: KeeperNote) -> str:
    return str(note) if note.ready else f"{note.words} being imported by one that another run keeps"


def _start(
    command: Command, request: LaunchRequest, keep: Keep, note: KeeperNote, why: str
) -> KeptProcess:
    folder = keep_folder.new_folder(note.kind)
    try:
        with _listening(folder) as listener:
            spec = KeeperSpec(
                str(folder), listener.fileno(), keep.idle, time.time_ns(), asdict(note)
            )
            _run(command, spec)
        message = (
            f"launcher: a new one is kept from now on, for {keep.idle / 60:g} min after a run{why}"
        )
        return KeptProcess(_send(folder, request), folder, message)
    except BaseException:
        keep_folder.remove(folder)
        raise


def _run(command: Command, spec: KeeperSpec) -> None:
    """Start the keeper, which detaches from this process at once."""
    folder = Path(spec.folder)
    with (folder / keep_folder.LOG).open("wb") as log:
        subprocess.run(
            [*command.arguments, "-c", _CODE],
            input=json.dumps(asdict(spec)).encode() + b"\n",
            stdout=log,
            stderr=log,
            env={**keep_owner.without_one_run(command.environment), "TMPDIR": str(folder)},
            cwd=folder,
            pass_fds=[spec.listener],
            start_new_session=True,
            check=True,
        )


@contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    with _address(folder) as address, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        os.chmod(folder / keep_folder.SOCKET, 0o600)
        listener.listen(_BACKLOG)
        yield listener


def _send(folder: Path, request: LaunchRequest) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        with _address(folder) as address:
            connection.connect(address)
        connection.sendall(request.pack())
        return connection
    except BaseException:
        connection.close()
        raise


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Yield the socket's path through a descriptor of its folder: the full path may be too long."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{keep_folder.SOCKET}"
    finally:
        os.close(descriptor)
