"""The launcher: a separate process that has torch, torch elastic and the fork server.

The controller starts it (launch.client) and imports none of these itself. The launcher imports
torch elastic and forks the fork server, which so has torch imported already. It runs one worker
group after another in its main thread, while a second thread reads the controller's messages. When
the controller is gone, it kills its group, removes the run's folder and exits.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from pytest_pprank.launch import forked_server, preload
from pytest_pprank.launch.orphans import adopt_orphans, kill_orphans
from pytest_pprank.launch.owned_folder import OwnedFolder
from pytest_pprank.launch.shared_memory import name_semaphores, remove_shared_memory
from pytest_pprank.protocol.channel import Channel, ChannelClosed, connect
from pytest_pprank.protocol.launcher import LAUNCHER_RANK, LauncherSpec
from pytest_pprank.protocol.messages import (
    GroupEnded,
    Hello,
    KillGroup,
    KillRanks,
    Preloaded,
    StartGroup,
)

if TYPE_CHECKING:
    from pytest_pprank.launch.elastic import ElasticGroup

_KILL_SECONDS = 5.0
_KILL_AGAIN_SECONDS = 0.05
_TERMINATE_SECONDS = 0.4
"""How long SIGTERM is sent before SIGKILL."""
_RELEASE_SECONDS = 1.0
"""How long elastic may take to see that all ranks have been killed."""
_FORK_SERVER = "pytest_pprank.launch.fork_server"


class Launcher:
    """State shared by the main thread, which runs groups, and the reader of messages."""

    def __init__(self, spec: LauncherSpec) -> None:
        self._spec = spec
        self._work: SimpleQueue[StartGroup] = SimpleQueue()
        self._running: tuple[str, ElasticGroup] | None = None
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._start_method = "forkserver" if spec.fork else "spawn"
        self._channel: Channel
        self._folder: OwnedFolder

    def main(self) -> None:
        """Serve the controller. The reader ends the process, on Shutdown or without controller."""
        try:
            self._folder = OwnedFolder(Path(self._spec.run_dir))
        except FileNotFoundError:  # the controller was killed, and another run has removed it
            return
        adopt_orphans()
        name_semaphores(Path(self._spec.run_dir).name)
        if self._spec.fork:
            import_module("pytest_pprank.launch.elastic")  # before starting a thread
            multiprocessing.set_forkserver_preload([_FORK_SERVER])
            forked_server.start()
        try:
            self._channel = connect(
                self._spec.address, bytes.fromhex(self._spec.key), Hello(LAUNCHER_RANK, os.getpid())
            )
        except (ConnectionError, EOFError):  # the controller ended during the imports
            self._clean_up_and_exit(gone=True)
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        try:
            self._serve()
        except BaseException as error:
            # the reader is cleaning up and then ends the process: do not cut it short
            if isinstance(error, ChannelClosed) or self._leaving.is_set():
                reader.join()
            raise

    def _serve(self) -> NoReturn:
        endpoint = _serve_rendezvous()
        self._channel.send(self._look_at_fork_server())
        while True:
            self._channel.send(self._run(self._work.get(), endpoint))

    def _look_at_fork_server(self) -> Preloaded:
        """Wait for the fork server's imports, and decide whether ranks may be forked from it."""
        import_module("pytest_pprank.launch.elastic")
        if not self._spec.fork:
            return Preloaded(0.0, (), {}, (), "", "spawn", "asked for")
        try:
            seconds, modules, failures, threads, cuda = _describe_fork_server()
        except (EOFError, ConnectionError):
            self._start_method = "spawn"
            return Preloaded(0.0, (), {}, (), "", "spawn", "the fork server died while importing")
        reason = unsafe_to_fork(threads, cuda)
        if reason:
            self._start_method = "spawn"
        return Preloaded(seconds, modules, failures, threads, cuda, self._start_method, reason)

    def _run(self, order: StartGroup, endpoint: str) -> GroupEnded:
        from pytest_pprank.host.main import rank_main
        from pytest_pprank.launch.elastic import ElasticGroup

        try:
            group = ElasticGroup(
                endpoint,
                order.nproc,
                str(Path(order.workdir) / "logs"),
                self._start_method,
                rank_main,
                (order.bootstrap,),
            )
            with self._lock:
                self._running = (order.group, group)
            exits, first = group.run()
            return GroupEnded(order.group, exits, first=first)
        except Exception:
            return GroupEnded(order.group, {}, traceback.format_exc())
        finally:
            with self._lock:
                self._running = None
            kill_orphans(_helpers())

    def _read(self) -> None:
        gone = False
        try:
            while True:
                message = self._channel.receive()
                if isinstance(message, StartGroup):
                    self._work.put(message)
                elif isinstance(message, KillRanks):
                    self._kill_ranks(message)
                elif isinstance(message, KillGroup):
                    self._kill(message.group)
                else:
                    break
        except ChannelClosed:
            gone = True  # the controller ended without Shutdown
        self._leaving.set()
        self._kill(None)
        self._clean_up_and_exit(gone=gone)

    def _clean_up_and_exit(self, *, gone: bool) -> NoReturn:
        """Remove everything the run has created, and exit.

        `gone`: the controller cannot do its part, so that is done here, too.
        """
        # The main thread may be inside elastic, waiting for workers that are being killed. It is
        # ended by os._exit: it has no state worth saving.
        kill_orphans(_helpers())
        _end_helpers()
        # after the fork server has ended, whose imports write into the folder
        self._folder.remove()
        if gone:
            import_module("pytest_pprank.launch.lease_files").sweep()
        remove_shared_memory(Path(self._spec.run_dir).name)
        os._exit(0)

    def _kill_ranks(self, order: KillRanks) -> None:
        with self._lock:
            running = self._running
        if running is not None and running[0] == order.group:
            running[1].kill_ranks(order.ranks)

    def _kill(self, group: str | None) -> None:
        # a starting group may not know its processes yet: repeat the signal until it has ended
        start = time.monotonic()
        while (spent := time.monotonic() - start) < _KILL_SECONDS:
            with self._lock:
                running = self._running
            if running is None or group not in (None, running[0]):
                return
            polite = spent < _TERMINATE_SECONDS
            running[1].signal(signal.SIGTERM if polite else signal.SIGKILL)
            time.sleep(_KILL_AGAIN_SECONDS)
            if spent > _RELEASE_SECONDS:
                running[1].release()


_Described = tuple[float, tuple[str, ...], dict[str, str], tuple[str, ...], str]
"""Seconds, modules, failures, threads, and where CUDA was started: see Preloaded."""


def _describe_fork_server() -> _Described:
    """Fork a process from the fork server that reports what a rank inherits (preload.describe)."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=preload.describe, args=(theirs,))
    process.start()
    theirs.close()
    answer: _Described = ours.recv()
    process.join()
    return answer


def _helpers() -> set[int]:
    """Return the process ids of multiprocessing's fork server and resource tracker."""
    server: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)
    tracker: int | None = getattr(resource_tracker._resource_tracker, "_pid", None)
    return {pid for pid in (server, tracker) if pid is not None}


def _end_helpers() -> None:
    """End multiprocessing's fork server and resource tracker, and reap them.

    Both would exit by themselves when our ends of their pipes close. But the fork server takes
    seconds to tear down an interpreter with torch, and init would have to reap them. The tracker
    gets time to unlink the semaphores that killed ranks have left in /dev/shm.
    """
    lock: threading.Lock | None = getattr(forkserver._forkserver, "_lock", None)
    if lock is not None:
        # never released: the main thread, if it is starting a rank, would start a new fork server
        lock.acquire(timeout=_KILL_SECONDS)
    server: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if server is not None:
        os.kill(server, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(server, 0)
    stop = getattr(resource_tracker._resource_tracker, "_stop", None)
    if stop is not None:
        stop()


def _serve_rendezvous() -> str:
    from pytest_pprank.rank.store import listen_on_loopback

    # elastic would open a second store, on all interfaces, for the workers' MASTER_PORT
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    host, port = listen_on_loopback()
    return f"{host}:{port}"


def unsafe_to_fork(threads: tuple[str, ...], cuda: str) -> str:
    """Return why a process with such threads cannot be forked; empty if it can.

    `cuda`: where CUDA was started in it, empty if nowhere.
    """
    if cuda:
        return f"an import started CUDA {cuda}, which does not survive a fork"
    if len(threads) > 1:
        names = "; ".join(threads[1:])
        return f"imports left {len(threads) - 1} thread(s) behind ({names}), which no fork survives"
    return ""


def main() -> None:
    """Entry point of the launcher process; the first line of stdin is its LauncherSpec."""
    line = sys.stdin.readline()
    if not line:  # the controller ended before writing it; the current folder is the run's
        shutil.rmtree(Path.cwd(), ignore_errors=True)
        return
    Launcher(LauncherSpec.from_json(line)).main()
