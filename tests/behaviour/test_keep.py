"""--pprank-keep: the next run finds a launcher that has already imported everything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.launch.client import LauncherClient
from pytest_pprank.launch.kept import Keep

if TYPE_CHECKING:
    from tests.conftest import Runner

FLAGS = ["--pp-size=2", "--pprank-device=cpu", "--pprank-keep", "-p", "kept_plugin"]
SOURCE = """
import os, time
import kept_module

def test_first(process_group, pprank):
    assert os.environ["COLUMNS"] == os.environ["EXPECTED"]
    assert kept_module.VALUE == int(os.environ["PYTEST_XDIST_X"])

def test_stuck(pprank):
    pprank.barrier()
    open(f"stuck{pprank.rank}", "w").close()
    time.sleep(1000)
"""
PLUGIN = """
import pytest_pprank.protocol.launcher as launcher
launcher.PLAIN_PRELOAD += ("kept_module",)
"""


@pytest.fixture
def own_tmp() -> Iterator[Path]:
    """Create a temporary folder for these runs, with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def keeping(runner: Runner) -> Iterator[Runner]:
    """Create a folder of tests and a module to preload; no launcher is kept after the test."""
    (runner.folder / "lib").mkdir()
    runner.write(test_it=SOURCE, **{"lib/kept_module": "VALUE = 1", "lib/kept_plugin": PLUGIN})
    yield runner
    stop(runner)


def environment(
    runner: Runner, value: int = 1, columns: str = "80", **more: str
) -> dict[str, dict[str, str]]:
    """Return the environment of a run: EXPECTED is the same in all runs, COLUMNS differs."""
    path = os.pathsep.join([str(runner.folder / "lib"), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "COLUMNS": columns, "PYTEST_XDIST_X": str(value)}
    return {"env": {**own, "EXPECTED": "80", **more}}


def stop(runner: Runner) -> str:
    command = [sys.executable, "-m", "pytest_pprank", "stop"]
    done = subprocess.run(
        command, env=runner.environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


def root_of(runner: Runner) -> Path:
    return runner.folder / f"pytest-pprank-kept-{os.geteuid()}"


def keeper_of(runner: Runner) -> int:
    """Return the pid of the one process that is kept."""
    runner.wait_for(lambda: len(runner.processes()) == 1, f"one is left: {runner.processes()}")
    return next(iter(runner.processes()))


def test_runs_share_what_is_imported_until_something_changes(
    keeping: Runner, own_tmp: Path
) -> None:
    # killed while it waits for the imports, which continue for the next run
    settings = environment(keeping, TMPDIR=str(own_tmp))
    with keeping.popen("-v", *FLAGS, "-k", "first", **settings) as killed:
        said = keeping.read_until(killed, "pprank: launcher: ")
        kept = root_of(keeping)
        keeping.wait_for(
            lambda: list(kept.glob("*/note.json")) and list(own_tmp.glob("pprank-*")),
            "it has begun",
        )
        killed.kill()
    assert said == "pprank: launcher: a new one is kept from now on, for 10 min after a run\n"
    first = keeping.run(*FLAGS, "-k", "first", **environment(keeping))
    assert first.ret == 0, first.out
    keeper = keeper_of(keeping)
    early = "launcher: torch being imported by one that another run keeps"  # or already imported
    assert re.search(rf"{early}|launcher: kept since .* \(pid {keeper}\)", first.out), first.out
    assert list(own_tmp.glob("pprank-*")) == []  # except what pytest itself keeps
    (folder,) = root_of(keeping).iterdir()
    assert [path.stat().st_mode & 0o777 for path in (root_of(keeping), folder)] == [0o700, 0o700]
    assert (folder / "socket").stat().st_mode & 0o777 == 0o600
    for number in (0, 1, 2):  # it has no terminal and no pipe of the run that started it
        assert os.readlink(f"/proc/{keeper}/fd/{number}") in ("/dev/null", str(folder / "log"))

    # two runs at the same time, of which one is killed
    reused = rf"launcher: kept since \d\d:\d\d \(pid {keeper}\), torch imported\n"
    with keeping.popen("-v", *FLAGS, "-k", "stuck", **environment(keeping)) as stuck:
        try:
            there = [keeping.folder / "stuck0", keeping.folder / "stuck1"]
            keeping.wait_for(lambda: all(path.exists() for path in there), "it is stuck")
            second = keeping.run(*FLAGS, "-k", "first", **environment(keeping))
        finally:
            stuck.kill()
    assert second.ret == 0, second.out
    assert re.search(reused, second.out), second.out
    assert keeper_of(keeping) == keeper

    # a variable that differs between runs: it has this run's value, which is not the expected one
    third = keeping.run(*FLAGS, "-k", "first", **environment(keeping, columns="99"))
    assert re.search(reused, third.out), third.out
    assert "assert '99' == '80'" in third.out

    # a change of any other variable
    changed = keeping.run(*FLAGS, "-k", "first", **environment(keeping, SOME_VARIABLE="1"))
    assert changed.ret == 0, changed.out
    assert re.search(
        rf"a new one is kept .*; the one kept since \d\d:\d\d \(pid {keeper}\), torch imported, "
        "was ended: environment variable SOME_VARIABLE is new\n",
        changed.out,
    ), changed.out
    other = keeper_of(keeping)
    assert other != keeper

    # a change of a file; the launcher then exits by itself
    (keeping.folder / "lib" / "kept_module.py").write_text("VALUE = 22")
    settings = environment(keeping, 22, SOME_VARIABLE="1")
    edited = keeping.run(*FLAGS, "--pprank-keep-minutes=0.01", "-k", "first", **settings)
    assert edited.ret == 0, edited.out
    path = keeping.folder / "lib" / "kept_module.py"
    assert re.search(rf"\(pid {other}\).* ended: {path} has changed\n", edited.out), edited.out
    keeping.wait_for(lambda: not keeping.processes(), f"it has left: {keeping.processes()}")
    assert not root_of(keeping).exists()
    assert list(Path("/dev/shm").glob("sem.pprank-kept-*")) == []
    assert stop(keeping) == f"no launcher is kept in {root_of(keeping)}\n"


def test_what_cannot_be_kept_is_started_as_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPRANK_LEASE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "leaves_thread.py").write_text(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    with closing(LauncherClient(["leaves_thread"], keep=Keep(600, "torch"))) as launcher:
        assert launcher.wait_preloaded(120).start_method == "spawn"
        assert launcher.kept.startswith("launcher: not kept: imports left 1 thread(s) behind")
    root = tmp_path / f"pytest-pprank-kept-{os.geteuid()}"
    assert not root.exists()

    root.mkdir(mode=0o755)
    with closing(LauncherClient(["json"], keep=Keep(600, "torch"))) as launcher:
        assert re.match(r"launcher: not kept: .* with mode 700: .* mode 755", launcher.kept)
        assert launcher.wait_preloaded(120).start_method == "forkserver"
        os.killpg(launcher.pid, signal.SIGCONT)  # the process group exists
