"""Leases: a lease of one process is given to no other, however the process ends; no file stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_pprank.launch import leases
from pytest_pprank.launch.lease_files import LockFolder, Note, default_folder, process_start
from pytest_pprank.launch.leases import LeaseError, LeaseQueue, cpu_slots

T = TypeVar("T")
Queue = Callable[..., LeaseQueue]

DEADLINE = 60
HOLD = """
    lease = queue(timeout=60).acquire(names, count)
    print("held", *lease.names, flush=True)
    sys.stdin.readline()
    lease.release()
    print("released", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> LockFolder:
    return LockFolder(tmp_path / "leases")


@pytest.fixture
def queue(folder: LockFolder) -> Queue:
    def make(
        timeout: float = 0.01, messages: list[str] | None = None, turn: float = 0.0
    ) -> LeaseQueue:
        said: list[str] = [] if messages is None else messages
        return LeaseQueue("our command", timeout, said.append, folder=folder, turn=turn)

    return make


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(leases, "_SHOW_AFTER_SECONDS", 0.0)


@contextmanager
def process(
    folder: LockFolder, names: Sequence[str], count: int, code: str = HOLD, **kwargs: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start another process with a `queue(timeout)`; it is killed at the end."""
    head = f"""
    import os, sys
    from pathlib import Path
    from pytest_pprank.launch import leases
    from pytest_pprank.launch.lease_files import LockFolder
    names, count, folder = {names!r}, {count}, LockFolder(Path({str(folder.path)!r}))
    leases._POLL_SECONDS = 0.01
    def queue(timeout):
        return leases.LeaseQueue("their command", timeout, print, folder=folder)
    """
    source = textwrap.dedent(head) + textwrap.dedent(code)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **kwargs) as other:
        try:
            yield other
        finally:
            other.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout
    return process.stdout.readline()


@contextmanager
def holder(
    folder: LockFolder, names: Sequence[str], count: int | None = None, **kwargs: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start another process that locks the names until it is sent a line."""
    with process(folder, names, count or len(names), **kwargs) as other:
        said = line_of(other)
        assert said.startswith("held"), said
        yield other


def wait_for(condition: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.01)
    return value


def note(pid: int | None = None, command: str = "c", wants: Sequence[str] = ()) -> Note:
    pid = pid or os.getpid()
    return Note(pid, process_start(pid) or 0, "u", 0.0, command, tuple(wants))


def test_a_lone_run_gets_what_it_wants_and_leaves_nothing(queue: Queue, folder: LockFolder) -> None:
    lease = queue().acquire(["a", "b", "c"], 2)
    assert lease.names == ("a", "b")
    assert folder.names() == ["a", "b"]
    lease.release()
    lease.release()
    assert not folder.path.exists()


def test_what_another_process_holds_is_left_out(queue: Queue, folder: LockFolder) -> None:
    with holder(folder, ["b"]):
        lease = queue().acquire(["a", "b", "c"], 2)
        assert lease.names == ("a", "c")
        lease.release()
        assert folder.names() == ["b"]


def test_waits_and_says_once_who_holds_it(queue: Queue, folder: LockFolder) -> None:
    messages: list[str] = []
    with holder(folder, ["a", "b"]) as other:

        def report(text: str) -> None:
            messages.append(text)
            print("", file=other.stdin, flush=True)

        waiting = queue(timeout=DEADLINE)
        waiting._show = report
        lease = waiting.acquire(["a", "b"], 2)
        lease.release()
        assert line_of(other) == "released\n"
        (text,) = messages
        assert f"a, b held by pid {other.pid} (" in text
        assert "their command" in text
        assert " since " in text
        assert "for at most 60 s" in text
    assert not folder.path.exists()  # neither ticket nor lock nor folder


def test_gives_up_with_the_names_of_the_holders(queue: Queue, folder: LockFolder) -> None:
    with holder(folder, ["a"]) as other, holder(folder, ["b"]) as third:
        messages: list[str] = []
        ours = queue(timeout=0.5, messages=messages)
        with pytest.raises(LeaseError) as error:
            ours.acquire(["a", "b", "c"], 2)
        text = str(error.value)
        assert "no 2 of a, b, c became free within 0.5 s (--pprank-lease-timeout)" in text
        assert f"a held by pid {other.pid} (" in text
        assert f"b held by pid {third.pid} (" in text
        assert "--pprank-lease off" in text
        assert len(messages) == 1  # for many checks
        with pytest.raises(LeaseError, match="within 0 s"):  # a run waits in vain only once
            ours.acquire(["a"], 1)
        assert folder.names() == ["a", "b"]  # no ticket, and not the free one


@pytest.mark.parametrize("way", ["kill", "terminate"])
def test_a_lease_dies_with_its_owner(queue: Queue, folder: LockFolder, way: str) -> None:
    with holder(folder, ["a", "b"]) as other:
        getattr(other, way)()
        other.wait()
        assert folder.names() == ["a", "b"]  # no process was left to remove the files
        lease = queue().acquire(["a"], 1)
        lease.release()
        folder.sweep()
        assert not folder.path.exists()


def test_children_of_the_owner_do_not_keep_its_lease(queue: Queue, folder: LockFolder) -> None:
    code = """
    lease = queue(timeout=60).acquire(names, count)
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False)
    if os.fork() == 0:
        print("held by the parent of", os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os.waitpid(-1, 0)
    """
    with process(folder, ["a"], 1, code=code) as other:
        child = int(line_of(other).split()[-1])
        other.kill()
        other.wait()
        assert process_start(child)  # it lives until its input ends
        queue().acquire(["a"], 1).release()


def test_all_or_nothing(queue: Queue, folder: LockFolder) -> None:
    """A process that waits for two locks keeps neither while it waits, and gets both in the end."""
    messages: list[str] = []
    with holder(folder, ["b"]) as other, process(folder, ["a", "b"], 2) as waiting:
        wait_for(lambda: folder.names("wait-"), "it waits")
        # bypasses its ticket: the question is whether it holds a
        lock = wait_for(lambda: folder.try_lock("a", note()), "a is free")
        lock.release()
        print("", file=other.stdin, flush=True)
        assert line_of(waiting) == "held a b\n"
        with pytest.raises(LeaseError):
            queue(messages=messages).acquire(["a", "b"], 1)


def test_contenders_never_meet_nor_lock_each_other_out(folder: LockFolder, tmp_path: Path) -> None:
    """Four processes lock any two of three names, forty times each; lock files come and go."""
    code = f"""
    leases._POLL_SECONDS = 0.001
    for _ in range(40):
        lease = queue(timeout=60).acquire(names, count)
        for name in lease.names:
            os.close(os.open({str(tmp_path)!r} + "/in-use-" + name, os.O_CREAT | os.O_EXCL))
        for name in lease.names:
            os.unlink({str(tmp_path)!r} + "/in-use-" + name)
        lease.release()
    print("done", flush=True)
    """
    names = ["a", "b", "c"]
    with (
        process(folder, names, 2, code=code) as first,
        process(folder, names, 2, code=code) as second,
        process(folder, names[::-1], 2, code=code) as third,
        process(folder, names, 2, code=code) as fourth,
    ):
        for contender in (first, second, third, fourth):
            assert contender.stdout
            assert contender.stdout.read().splitlines()[-1:] == ["done"]
            assert contender.wait() == 0
    assert not folder.path.exists()


def test_nobody_overtakes_one_who_wants_the_same(queue: Queue, folder: LockFolder) -> None:
    with holder(folder, ["a"]) as other, process(folder, ["a", "b"], 2) as waiting:
        wait_for(lambda: queue().ahead(["b"]), "it waits")
        with pytest.raises(LeaseError, match=f"first in the queue is pid {waiting.pid} "):
            queue().acquire(["b"], 1)
        queue().acquire(["c"], 1).release()
        other.kill()
        assert line_of(waiting) == "held a b\n"


def test_one_who_sleeps_or_died_in_the_queue_is_overtaken(queue: Queue, folder: LockFolder) -> None:
    with holder(folder, ["a"]), process(folder, ["a", "b"], 2) as waiting:
        wait_for(lambda: queue().ahead(["b"]), "it waits")
        (ticket,) = folder.names("wait-")
        waiting.send_signal(signal.SIGSTOP)
        wait_for(lambda: "T" in _state(waiting.pid), "it stopped")
        os.utime(folder.path / f"{ticket}.lock", (0, 0))
        queue().acquire(["b"], 1).release()
        assert folder.names("wait-") == [ticket]
        waiting.kill()
        waiting.wait()
        queue().acquire(["b"], 1).release()
        assert folder.names("wait-") == []


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_holder_sees_that_others_wait(queue: Queue, folder: LockFolder) -> None:
    lease, patient = queue().acquire(["a"], 1), queue(turn=1e9).acquire(["b"], 1)
    assert not lease.wanted
    with process(folder, ["c"], 1), process(folder, ["a", "b"], 1):
        wait_for(lambda: lease.wanted, "it is wanted")
        assert not patient.wanted  # it keeps its turn
    lease.release()
    patient.release()
    other = queue().acquire(["d"], 1)
    assert not other.wanted
    other.release()


def test_a_dead_owner_is_never_shown(queue: Queue, folder: LockFolder) -> None:
    with holder(folder, ["a"]) as dead:
        dead.kill()
        dead.wait()
    said = (folder.path / "a.lock").read_bytes()
    lock = folder.try_lock("a", note(command="the living"))
    assert lock
    try:
        shown = folder.note("a")
        assert shown
        assert shown.command == "the living"
        (folder.path / "a.lock").write_bytes(said)  # the state between its lock and its note
        assert json.loads(said)["pid"] == dead.pid
        with pytest.raises(LeaseError, match="a held by a process that cannot be seen from here"):
            queue().acquire(["a"], 1)
    finally:
        lock.release()


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff\x00", b'{"pid": [1]}'])
def test_junk_in_a_lock_file(folder: LockFolder, said: bytes) -> None:
    lock = folder.try_lock("a", note())
    assert lock
    (folder.path / "a.lock").write_bytes(said)
    assert folder.note("a") is None
    assert folder.is_locked("a")
    lock.release()


def test_what_others_say_is_cleaned_before_it_is_shown(queue: Queue, folder: LockFolder) -> None:
    lock = folder.try_lock("a", note(command="\x1b[2Jrm \n" + "x" * 1000))
    assert lock
    with pytest.raises(LeaseError) as error:
        queue().acquire(["a"], 1)
    lock.release()
    assert "?[2Jrm ?xxx" in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 500


def test_links_are_not_followed(queue: Queue, folder: LockFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder.try_lock("b", note())
    (folder.path / "a.lock").symlink_to(victim)
    with pytest.raises(LeaseError, match=r"PPRANK_LEASE_DIR.*--pprank-lease off"):
        queue().acquire(["a"], 1)
    assert victim.read_text() == "precious"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = LeaseQueue("c", 1, print, folder=LockFolder(tmp_path / "link"))
    with pytest.raises(LeaseError, match="link is not a folder"):
        linked.acquire(["a"], 1)


@pytest.fixture
def shared_folder() -> Iterator[LockFolder]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o1777)
        yield LockFolder(Path(name) / "leases")


def as_user(number: int, code: str = HOLD) -> str:
    """Return `code` run as another user, after a rehearsal as root.

    The rehearsal imports what filelock and the standard library import only when needed: afterwards
    root's Python may be unreadable.
    """
    rehearsal = """
    rehearsed = LockFolder(folder.path.with_name(f"rehearsal-{os.getpid()}"))
    leases.LeaseQueue("rehearsal", 1, print, folder=rehearsed).acquire(names, count).release()
    """
    becomes = f"os.setgroups([]), os.setgid({number}), os.setuid({number}), os.umask(0o077)\n"
    return textwrap.dedent(rehearsal) + becomes + textwrap.dedent(code)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")


@needs_root
def test_users_share_a_folder(shared_folder: LockFolder) -> None:
    """Either user may have created it; a file that one's killed run left is used by the other."""
    folder = shared_folder
    ours = LeaseQueue("ours", 0.01, print, folder=folder)
    lock = folder.try_lock("z", note())
    assert lock
    with holder(folder, ["a"], code=as_user(1001)) as other:
        with pytest.raises(LeaseError, match=f"a held by pid {other.pid} .*their command"):
            ours.acquire(["a"], 1)
        other.kill()
        other.wait()
        ours.acquire(["a"], 1).release()
    with holder(folder, ["b"]) as killed:
        killed.kill()
        killed.wait()
    with holder(folder, ["b"], code=as_user(1001)) as other:
        assert folder.is_locked("b")
        with pytest.raises(LeaseError, match=f"b held by pid {other.pid} .*their command"):
            ours.acquire(["b"], 1)
    lock.release()


@needs_root
def test_what_a_killed_run_of_one_user_left_bars_no_other(shared_folder: LockFolder) -> None:
    """Neither of them owns the folder; filelock trusts the owner, who alone may unlink files."""
    lock = shared_folder.try_lock("z", note())
    assert lock
    with holder(shared_folder, ["a"], code=as_user(1001)) as killed:
        killed.kill()
        killed.wait()
    assert shared_folder.names() == ["a", "z"]
    with holder(shared_folder, ["a"], code=as_user(1002)) as other:
        print("", file=other.stdin, flush=True)
        assert line_of(other) == "released\n"
    assert shared_folder.names() == ["z"]
    lock.release()


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_of_another_user(
    folder: LockFolder, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    lock = folder.try_lock("z", note())
    assert lock
    monkeypatch.setattr(os, "geteuid", lambda: folder.path.stat().st_uid + 1)
    folder.path.chmod(mode)
    again = folder.try_lock("a", note())
    assert again
    again.release()
    folder.path.chmod(mode & ~0o022)
    with pytest.raises(PermissionError, match=f"with mode {mode & ~0o022:o}: it must be 777"):
        folder.try_lock("a", note())
    lock.release()


def test_a_file_that_is_not_ours_any_more_is_left_alone(queue: Queue, folder: LockFolder) -> None:
    """A cleaner of /tmp removes our file, and another run gets the lock under its name."""
    ours = queue().acquire(["a"], 1)
    (folder.path / "a.lock").unlink()
    with holder(folder, ["a"]):
        ours.release()
        assert folder.names() == ["a"]


def test_more_than_there_is_is_refused_at_once(queue: Queue, folder: LockFolder) -> None:
    with pytest.raises(LeaseError, match="3 asked for, and there are only 2"):
        queue().acquire(["a", "b"], 3)
    assert not folder.path.exists()


@pytest.mark.parametrize(("cores", "slots"), [(1, 4), (2, 4), (8, 16)])
def test_slots(cores: int, slots: int) -> None:
    assert len(cpu_slots(cores)) == len(set(cpu_slots(cores))) == slots


def test_the_folder_is_one_per_box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PPRANK_LEASE_DIR", raising=False)
    usual = default_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert default_folder() == usual
    monkeypatch.setenv("PPRANK_LEASE_DIR", str(tmp_path))
    assert default_folder().parent == tmp_path
