"""Checks of what ranks need from the operating system."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import secrets
import socket
import tempfile
import time
from pathlib import Path

from pytest_pprank.doctor.result import Result, broken, limited, ok
from pytest_pprank.launch.client import LOOPBACK_INTERFACE, short_folder
from pytest_pprank.launch.lease_files import FOLDER_VARIABLE, LockFolder, default_folder
from pytest_pprank.launch.leases import LeaseError, LeaseQueue, holders
from pytest_pprank.launch.owned_folder import OwnedFolder, remove_leftovers
from pytest_pprank.launch.shared_memory import SHARED_MEMORY
from pytest_pprank.protocol.channel import Listener, connect
from pytest_pprank.protocol.launcher import LAUNCHER_RANK
from pytest_pprank.protocol.messages import Hello

_MIB = 1 << 20
_LEAST_SHARED, _LITTLE_SHARED = 1 * _MIB, 32 * _MIB
# Of two ranks, a test of torch alone passes with 48 open files per process; with SGLang it does not
# start with 64 and passes with 128.
_LEAST_FILES, _FEW_FILES, _ENOUGH_FILES = 48, 256, 1024
_LEAST_TASKS, _FEW_TASKS, _ENOUGH_TASKS = 16, 256, 4096
_GLOO = "GLOO_SOCKET_IFNAME"
_ANSWER_SECONDS = 5.0
_FOLDER = "pprank-doctor-"
_NAP_SECONDS = 0.02
_LONGEST_NAP = 2.0


def leases() -> Result:
    """Take a lock in the folder of leases, and say who holds what."""
    folder = LockFolder(default_folder())
    try:
        own = f"doctor-{os.getpid()}"
        LeaseQueue("pytest_pprank doctor", 0, print, folder=folder).acquire([own], 1).release()
        found = holders(folder)
    except (LeaseError, OSError) as error:
        cure = f'export {FOLDER_VARIABLE}="$HOME"'
        text = f"{folder.path} cannot be used: {error.__cause__ or error}"
        return limited(f"{text}; without it runs need --pprank-lease off", cure)
    return ok(f"{folder.path}: {'; '.join(found) or 'nobody holds a device'}")


def shared_memory() -> Result:
    """Create a semaphore, and look at the space in /dev/shm."""
    try:
        multiprocessing.get_context("fork").Lock()  # a spawning one would leave a process behind
        free = _free(SHARED_MEMORY)
    except OSError as error:
        return broken(f"{SHARED_MEMORY} cannot be used: {error}", _remount("rw"))
    text = f"{SHARED_MEMORY} is writable, {free // _MIB} MiB free"
    if free < _LEAST_SHARED:
        return broken(text, _remount("size=1G"))
    return limited(text, _remount("size=1G")) if free < _LITTLE_SHARED else ok(text)


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _remount(how: str) -> str:
    return f"mount -o remount,{how} {SHARED_MEMORY}  # as root; in Docker: run --shm-size 1g"


def open_files() -> Result:
    """Look at the limit of open files per process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _judged(
        "open files per process", limit, (_LEAST_FILES, _FEW_FILES), f"-n {_ENOUGH_FILES}"
    )


def processes() -> Result:
    """Look at the limit of this user's processes and threads, and at how many there are."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() == 0:
        limit = resource.RLIM_INFINITY  # it does not apply to root
    left = limit if limit == resource.RLIM_INFINITY else limit - _tasks(os.getuid())
    return _judged(
        "processes and threads left", left, (_LEAST_TASKS, _FEW_TASKS), f"-u {_ENOUGH_TASKS}"
    )


def _tasks(user: int) -> int:
    count = 0
    for folder in Path("/proc").glob("[0-9]*/task"):
        try:
            count += len(os.listdir(folder)) if folder.stat().st_uid == user else 0
        except OSError:
            continue  # it has ended
    return count


def _judged(what: str, number: int, bounds: tuple[int, int], raised: str) -> Result:
    if number == resource.RLIM_INFINITY:
        return ok(f"{what}: unlimited")
    least, few = bounds
    if number < least:
        return broken(f"{what}: {number}, at least {least} are needed", f"ulimit {raised}")
    text = f"{what}: {number}"
    return ok(text) if number >= few else limited(f"{text}, few for SGLang", f"ulimit {raised}")


def loopback() -> Result:
    """Connect to ourselves, as a rank does to the controller."""
    cure = f"ip link set {LOOPBACK_INTERFACE} up  # as root"
    key = secrets.token_bytes(32)
    try:
        listener = Listener(key)
    except OSError as error:
        return broken(f"cannot listen: {error}", cure)
    host, port = listener.address
    try:
        channel = connect((host, port), key, Hello(LAUNCHER_RANK, os.getpid()))
        arrival = listener.arrived(_ANSWER_SECONDS)
        channel.close()
    except (OSError, EOFError) as error:
        return broken(f"cannot connect to {host}:{port}: {error}", cure)
    finally:
        listener.close()
    if arrival is None:
        return broken(f"a connection to {host} did not arrive in {_ANSWER_SECONDS:g} s", cure)
    arrival[1].close()
    return ok(f"can listen and connect on {host}")


def interface() -> Result:
    """Look for the network interface that gloo is told to use."""
    named = os.environ.get(_GLOO)
    here = [name for _, name in socket.if_nameindex()]
    missing = [it for it in (named or LOOPBACK_INTERFACE).split(",") if it not in here]
    if not missing:
        return ok(f"gloo uses {named or LOOPBACK_INTERFACE}")
    text = f"gloo is to use {', '.join(missing)}, and there are only {', '.join(here)}"
    return broken(text, f"unset {_GLOO}" if named else "")


def clock() -> Result:
    """Watch the monotonic clock during a short sleep: deadlines are measured with it."""
    seen = [time.monotonic() for _ in range(1000)]
    start = time.monotonic()
    time.sleep(_NAP_SECONDS)
    spent = time.monotonic() - start
    if any(later < earlier for earlier, later in itertools.pairwise(seen)):
        return broken("the monotonic clock goes back")
    if not _NAP_SECONDS / 2 < spent < _LONGEST_NAP:
        return limited(
            f"a sleep of {_NAP_SECONDS:g} s has taken {spent:.3f} s: deadlines will not hold"
        )
    return ok(f"monotonic; a sleep of {_NAP_SECONDS:g} s has taken {spent:.3f} s")


def temporary_folder() -> Result:
    """Bind a unix socket in the folder where runs make theirs."""
    usual, parent = tempfile.gettempdir(), short_folder()
    for _ in remove_leftovers(_FOLDER, parent):
        pass  # a doctor was interrupted here
    folder = OwnedFolder.make(_FOLDER, parent)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(folder.path / "socket"))
    except OSError as error:
        return broken(f"no unix socket in {folder.path}: {error}", "export TMPDIR=/tmp")
    finally:
        folder.remove()
    text = f"{parent}, {_free(Path(parent)) // _MIB} MiB free"
    return ok(
        text if parent == usual else f"{text} (the path {usual} is too long for unix sockets)"
    )
