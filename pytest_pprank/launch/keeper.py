"""The kept process (--pprank-keep): it has torch and SGLang imported, and forks launchers.

Each run gets its own launcher, which is forked here and then behaves like any other
(launch.launcher): a run finds nothing of another one. The keeper itself never runs a test, has a
single thread, and waits on a unix socket. It exits when a file that it has imported changes on
disk, after a time without runs, and on SIGTERM.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pytest_pprank.launch import keep_folder, keep_owner, preload
from pytest_pprank.launch.keep_files import ImportedFiles
from pytest_pprank.launch.keep_folder import KeeperNote
from pytest_pprank.launch.keep_identity import is_per_run
from pytest_pprank.launch.launcher import Launcher, unsafe_to_fork
from pytest_pprank.launch.lease_files import process_start
from pytest_pprank.launch.shared_memory import name_semaphores
from pytest_pprank.protocol.keeper import KeeperSpec, LaunchRequest
from pytest_pprank.protocol.launcher import LauncherSpec

_FORK_SERVER = "pytest_pprank.launch.fork_server"  # its import is the preload
_LIBRARIES = ("pytest_pprank.launch.elastic", "pytest_pprank.rank.store", _FORK_SERVER)
_REQUEST_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")
_CHUNK = 1 << 16


def _read_line(connection: socket.socket) -> bytes:
    """Read up to the end of a line or of the stream; raises OSError after the socket's timeout."""
    data = b""
    while not data.endswith(b"\n") and (more := connection.recv(_CHUNK)):
        data += more
    return data


class Keeper:
    """The keeper's main loop.

    `_launchers` maps the read end of a pipe to the pid of the launcher that holds the write end
    open.
    """

    def __init__(self, spec: KeeperSpec) -> None:
        self._spec = spec
        self._folder = Path(spec.folder)
        self._note = KeeperNote(**spec.note)
        self._listener = socket.socket(fileno=spec.listener)
        self._listener.set_inheritable(False)
        self._selector = selectors.DefaultSelector()
        self._launchers: dict[int, int] = {}

    def main(self) -> NoReturn:
        """Import the libraries, then serve requests until there is a reason to exit."""
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        name_semaphores(keep_folder.semaphore_name(self._folder))
        try:
            for name in _LIBRARIES:
                import_module(name)
            self._imported = ImportedFiles(str(self._folder))
            if reason := self._unfit_reason():
                self._refuse_all(reason)
            else:
                replace(self._note, ready=True).write(self._folder)
                self._serve()
        except BaseException:
            traceback.print_exc()
        self._leave()

    def _unfit_reason(self) -> str:
        """Return why no launcher may be forked from this process; empty if it may."""
        if preload.failures:
            return f"{next(iter(preload.failures))} cannot be imported"
        threads = tuple(preload.threads_of(os.getpid()))
        if reason := unsafe_to_fork(threads, preload.cuda_started()):
            return reason
        path = self._imported.changed_since(self._spec.started)
        return f"{path} has changed while it was imported" if path else ""

    def _refuse_all(self, reason: str) -> None:
        self._listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    if _receive(connection) is not None:
                        _answer(connection, {"refused": reason})

    def _serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        owner = keep_owner.owner_of(os.environ)
        last = time.monotonic()
        while True:
            left = last + self._spec.idle - time.monotonic()
            poll = keep_owner.POLL_S if owner else self._spec.idle
            found = self._selector.select(None if self._launchers else max(0.0, min(left, poll)))
            if found or self._launchers:
                last = time.monotonic()
            elif keep_owner.is_gone(owner) or time.monotonic() >= last + self._spec.idle:
                return
            for key, _ in found:
                if key.fileobj is not self._listener:
                    self._reap(key.fd)
                elif not self._take_request():
                    return

    def _reap(self, pipe: int) -> None:
        self._selector.unregister(pipe)
        os.close(pipe)
        with suppress(ChildProcessError):
            os.waitpid(self._launchers.pop(pipe), 0)

    def _take_request(self) -> bool:
        """Serve one run; return whether this keeper may continue."""
        connection, _ = self._listener.accept()
        with connection:
            if (request := _receive(connection)) is None:
                return True
            if path := self._imported.changed():
                _answer(connection, {"changed": f"{path} has changed"})
                return False
            self._fork(connection, request)
            return True

    def _fork(self, connection: socket.socket, request: LaunchRequest) -> None:
        ours, theirs = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            os.close(theirs)
            self._launchers[ours] = pid
            self._selector.register(ours, selectors.EVENT_READ)
            return
        try:
            for pipe in (ours, *self._launchers):
                os.close(pipe)
            self._listener.close()
            self._selector.close()
            become_launcher(connection, request)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _leave(self) -> NoReturn:
        keep_folder.remove(self._folder)
        with suppress(OSError):
            self._folder.parent.rmdir()
        os._exit(0)


def become_launcher(connection: socket.socket, request: LaunchRequest) -> None:
    """Become the launcher of one run, as if that run had started it.

    `connection` stays open for as long as the launcher lives, so that its run notices the end.
    """
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    spec = LauncherSpec.from_json(json.dumps(request.spec))
    for name in [name for name in os.environ if is_per_run(name)]:
        del os.environ[name]
    os.environ.update(request.environment)
    tempfile.tempdir = None
    log = os.open(Path(spec.run_dir) / "launcher.log", os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.chdir(spec.run_dir)
    _answer(connection, {"pid": os.getpid()})
    Launcher(spec).main()


def _receive(connection: socket.socket) -> LaunchRequest | None:
    """Return the request; None if the sender has gone, is another user, or sent something else."""
    connection.settimeout(_REQUEST_SECONDS)
    try:
        if _user_of(connection) != os.geteuid():
            return None
        request = LaunchRequest(**json.loads(_read_line(connection)))
    except (OSError, ValueError, TypeError):
        return None
    if _is_closed(connection):
        # it went while this process was importing; all that the run had created is its folder
        shutil.rmtree(request.spec["run_dir"], ignore_errors=True)
        return None
    return request


def _answer(connection: socket.socket, words: dict[str, Any]) -> None:
    with suppress(OSError):
        connection.sendall(json.dumps(words).encode() + b"\n")


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def _user_of(connection: socket.socket) -> int:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def main() -> None:
    """Entry point of the process: detach from the run that has started it, and write the note."""
    spec = KeeperSpec(**json.loads(sys.stdin.readline()))
    pid = os.fork()
    if pid:
        own = {"pid": pid, "start": process_start(pid) or 0}
        KeeperNote(**{**spec.note, **own}).write(Path(spec.folder))
        os._exit(0)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    own = {"pid": os.getpid(), "start": process_start(os.getpid()) or 0}
    Keeper(replace(spec, note={**spec.note, **own})).main()
