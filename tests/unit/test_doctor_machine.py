"""What ``doctor`` says of a machine on which something that ranks need is missing."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from pytest_pprank.doctor import machine
from pytest_pprank.doctor.result import Result, State
from pytest_pprank.errors import SEE_DOCTOR
from pytest_pprank.launch.lease_files import FOLDER_VARIABLE
from pytest_pprank.launch.leases import LeaseError, LeaseQueue
from pytest_pprank.protocol.channel import Listener

Patch = pytest.MonkeyPatch
MIB = 1 << 20


def refuse(error: OSError) -> Callable[..., NoReturn]:
    def call(*_: object, **__: object) -> NoReturn:
        raise error

    return call


def limit(patch: Patch, soft: int) -> None:
    patch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))


class TestLeases:
    @pytest.fixture(autouse=True)
    def _folder(self, monkeypatch: Patch, tmp_path: Path) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))

    def test_who_holds_what(self, tmp_path: Path) -> None:
        free = machine.leases()
        folder = tmp_path / "pytest-pprank-leases"
        assert free == Result(State.OK, f"{folder}: nobody holds a device")
        assert not folder.exists()
        lease = LeaseQueue("another run", 0, print).acquire(["gpu-7"], 1)
        result = machine.leases()
        lease.release()
        assert result.text.startswith(f"{folder}: gpu-7 held by pid {os.getpid()} (")
        assert result.text.endswith(": another run")

    def test_unusable_folder(self, tmp_path: Path) -> None:
        (tmp_path / "pytest-pprank-leases").write_text("a file")
        result = machine.leases()
        assert (result.state, result.stops) == (State.LIMITED, ())
        assert "pytest-pprank-leases cannot be used: [Errno 20] Not a directory" in result.text
        assert result.cure.startswith(f"export {FOLDER_VARIABLE}=")
        with pytest.raises(LeaseError) as error:
            LeaseQueue("a run", 0, print).acquire(["gpu-7"], 1)
        assert str(error.value).endswith(SEE_DOCTOR)


class TestSharedMemory:
    @pytest.mark.parametrize(
        ("free", "state"), [(0, State.BROKEN), (8 * MIB, State.LIMITED), (64 * MIB, State.OK)]
    )
    def test_space(self, free: int, state: State, monkeypatch: Patch) -> None:
        status = SimpleNamespace(f_bavail=free, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda _: status)
        result = machine.shared_memory()
        assert result.state is state
        assert result.text.endswith(f"{free // MIB} MiB free")
        assert bool(result.cure) is (state is not State.OK)

    def test_not_writable(self, monkeypatch: Patch) -> None:
        lock = SimpleNamespace(Lock=refuse(PermissionError(13, "Permission denied")))
        monkeypatch.setattr(multiprocessing, "get_context", lambda _: lock)
        result = machine.shared_memory()
        assert result.state is State.BROKEN
        assert "Permission denied" in result.text
        assert result.cure.startswith("mount -o remount,rw")


class TestLimits:
    @pytest.mark.parametrize(
        ("soft", "state"),
        [(20, State.BROKEN), (64, State.LIMITED), (1024, State.OK), (-1, State.OK)],
    )
    def test_open_files(self, soft: int, state: State, monkeypatch: Patch) -> None:
        limit(monkeypatch, soft)
        result = machine.open_files()
        assert result.state is state
        assert result.cure == ("" if state is State.OK else "ulimit -n 1024")

    @pytest.mark.parametrize(
        ("left", "state"), [(3, State.BROKEN), (100, State.LIMITED), (5000, State.OK)]
    )
    def test_processes(self, left: int, state: State, monkeypatch: Patch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(machine, "_tasks", lambda _: 40)
        limit(monkeypatch, 40 + left)
        result = machine.processes()
        assert result.state is state
        assert str(left) in result.text
        assert result.cure == ("" if state is State.OK else "ulimit -u 4096")

    def test_the_limit_of_processes_is_not_for_root(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        limit(monkeypatch, 3)
        assert machine.processes().state is State.OK

    def test_threads_count(self) -> None:
        assert machine._tasks(os.getuid()) >= len(os.listdir("/proc/self/task"))
        assert machine._tasks(-5) == 0


class TestLoopback:
    def test_this_machine(self) -> None:
        assert machine.loopback() == Result(State.OK, "can listen and connect on 127.0.0.1")

    def test_refused(self, monkeypatch: Patch) -> None:
        error = ConnectionRefusedError(111, "Connection refused")
        monkeypatch.setattr(socket, "create_connection", refuse(error))
        result = machine.loopback()
        assert result.state is State.BROKEN
        assert result.text.startswith("cannot connect to 127.0.0.1:")
        assert result.text.endswith("Connection refused")
        assert result.cure == "ip link set lo up  # as root"

    def test_no_address(self, monkeypatch: Patch) -> None:
        error = OSError(99, "Cannot assign requested address")
        monkeypatch.setattr(socket, "create_server", refuse(error))
        assert "cannot listen: " in machine.loopback().text

    def test_another_peer(self, monkeypatch: Patch) -> None:
        """Something between, such as a proxy, takes the connection, and it never arrives."""
        monkeypatch.setattr(machine, "_ANSWER_SECONDS", 0.2)
        monkeypatch.setattr(Listener, "arrived", lambda *_: None)
        result = machine.loopback()
        assert result.text == "a connection to 127.0.0.1 did not arrive in 0.2 s"

    def test_interface(self, monkeypatch: Patch) -> None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,none0")
        result = machine.interface()
        assert result.state is State.BROKEN
        assert result.text.startswith("gloo is to use none0, and there are only ")
        assert result.cure == "unset GLOO_SOCKET_IFNAME"
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        assert machine.interface() == Result(State.OK, "gloo uses lo")
        monkeypatch.setattr(socket, "if_nameindex", lambda: [(2, "eth0")])
        assert machine.interface().state is State.BROKEN


class TestClock:
    def test_this_machine(self) -> None:
        assert machine.clock().text.startswith("monotonic; a sleep of 0.02 s has taken 0.0")

    @pytest.mark.parametrize(
        ("step", "state", "words"),
        [(-1.0, State.BROKEN, "goes back"), (0.0, State.LIMITED, "0.000 s"),
         (9.0, State.LIMITED, "9.000 s")],
    )  # fmt: skip
    def test_strange_clock(self, step: float, state: State, words: str, monkeypatch: Patch) -> None:
        now = [0.0]

        def monotonic() -> float:
            now[0] += step
            return now[0]

        fake = SimpleNamespace(monotonic=monotonic, sleep=lambda _: None)
        monkeypatch.setattr(machine, "time", fake)
        result = machine.clock()
        assert result.state is state
        assert words in result.text


class TestTemporaryFolder:
    def test_long_path(self, monkeypatch: Patch, tmp_path: Path) -> None:
        long = str(tmp_path / ("x" * 60))
        monkeypatch.setattr("tempfile.tempdir", long)
        result = machine.temporary_folder()
        assert result.state is State.OK
        assert result.text.endswith(f"(the path {long} is too long for unix sockets)")

    def test_what_an_interrupted_doctor_has_left_is_removed(
        self, monkeypatch: Patch, tmp_path: Path
    ) -> None:
        (tmp_path / "pprank-doctor-abcdefgh").mkdir()
        monkeypatch.setattr(machine, "short_folder", lambda: str(tmp_path))
        machine.temporary_folder()
        assert list(tmp_path.iterdir()) == []

    def test_no_sockets_there(self, monkeypatch: Patch, tmp_path: Path) -> None:
        folder = tmp_path / ("y" * 90)
        folder.mkdir()
        monkeypatch.setattr(machine, "short_folder", lambda: str(folder))
        result = machine.temporary_folder()
        assert result.state is State.BROKEN
        assert "AF_UNIX path too long" in result.text
        assert result.cure == "export TMPDIR=/tmp"
        assert list(folder.iterdir()) == []
