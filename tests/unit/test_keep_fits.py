"""When a kept launcher fits a run, who can connect to it, and how it is ended."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_pprank.launch import keep_folder, stop
from pytest_pprank.launch.keep_files import ImportedFiles
from pytest_pprank.launch.keep_folder import KeeperNote, KeepError
from pytest_pprank.launch.keep_identity import difference, identity, kind, per_run
from pytest_pprank.launch.lease_files import process_start

ENVIRONMENT = {"PATH": "/bin", "SECRET": "hunter2", "TERM": "xterm", "PYTEST_XDIST_WORKER": "gw0"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPRANK_LEASE_DIR", str(tmp_path))
    return tmp_path / f"pytest-pprank-kept-{os.geteuid()}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"TERM": "dumb", "PYTEST_XDIST_WORKER": "gw1"}, ""),
        ({"SSH_TTY": "/dev/pts/3"}, ""),
        ({"PATH": "/usr/bin"}, "environment variable PATH has changed"),
        ({"SGLANG_X": ""}, "environment variable SGLANG_X is new"),
        ({"PATH": None}, "environment variable PATH is gone"),
    ],
)
def test_environment(change: dict[str, str | None], expected: str) -> None:
    changed = {k: v for k, v in {**ENVIRONMENT, **change}.items() if v is not None}
    assert difference(identity(ENVIRONMENT), identity(changed)) == expected


def test_values_are_not_told() -> None:
    assert "hunter2" not in str(identity(ENVIRONMENT))
    assert per_run(ENVIRONMENT) == {"TERM": "xterm", "PYTEST_XDIST_WORKER": "gw0"}


def test_limits_and_umask() -> None:
    before = identity({})
    other = os.umask(0o027)
    try:
        assert difference(before, identity({})) == "property of the process umask has changed"
    finally:
        os.umask(other)
    before["resource limit"]["RLIMIT_NOFILE"] = [1, 2]
    assert difference(before, identity({})) == "resource limit RLIMIT_NOFILE has changed"


def test_kinds() -> None:
    assert kind("torch") == kind("torch") != kind("torch, sglang")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create a package that this process has imported, and a module beside it."""
    folder = tmp_path / "site"
    made = folder / "kept_package"
    made.mkdir(parents=True)
    (made / "__init__.py").write_text("")
    (made / "data.json").write_text("{}")
    (folder / "kept_module.py").write_text("")
    (folder / "some-1.0.dist-info").mkdir()
    (folder / "some-1.0.dist-info" / "RECORD").write_text("")
    (folder / "some.pth").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    __import__("kept_package")
    __import__("kept_module")
    yield folder
    del sys.modules["kept_package"], sys.modules["kept_module"]


@pytest.mark.parametrize(
    "name",
    [
        "kept_module.py",
        "kept_package/__init__.py",
        "kept_package/data.json",
        "kept_package/new.py",
        "some-1.0.dist-info/RECORD",
        "some.pth",
        "new.py",
        "other-1.0.dist-info",
    ],
)
def test_changed_files(package: Path, name: str) -> None:
    files = ImportedFiles("/nowhere")
    assert files.changed() == ""
    path = package / name
    path.write_text("changed = 1")
    assert files.changed() in (str(path), str(path.parent))


def test_a_file_that_is_gone(package: Path) -> None:
    files = ImportedFiles("/nowhere")
    (package / "kept_module.py").unlink()
    assert files.changed() == str(package / "kept_module.py")


def test_what_does_not_matter(package: Path) -> None:
    files = ImportedFiles("/nowhere")
    (package / "junit.xml").write_text("")
    (package / ".pytest_cache").mkdir()
    for folder in (package, package / "kept_package"):
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "new.pyc").write_text("")
    assert files.changed() == ""


def test_changed_while_it_was_imported() -> None:
    assert ImportedFiles("/nowhere").changed_since(0)
    files = ImportedFiles("/nowhere")
    before = time.time_ns()
    assert not files.changed_since(before + 10**9)


def test_only_this_user_can_look_in(root: Path) -> None:
    with keep_folder.locked() as folder:
        assert folder == root
        assert folder.stat().st_mode & 0o777 == 0o700
        assert keep_folder.new_folder("kind").stat().st_mode & 0o777 == 0o700
    root.chmod(0o750)
    with pytest.raises(KeepError, match=r"with mode 700: .* has mode 750"), keep_folder.locked():
        pass


def test_nothing_is_left_where_nothing_is_kept(root: Path) -> None:
    with keep_folder.locked():
        assert list(keep_folder.keepers()) == []
    assert not root.exists()


def test_stop(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The process is killed whatever it does: this one does not listen."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        start = process_start(process.pid)
        assert start
        note = KeeperNote(process.pid, start, time.time(), "kind", "torch", "/python", {}, True)
        with keep_folder.locked():
            note.write(keep_folder.new_folder("kind"))
            keep_folder.new_folder("of-one-that-was-killed")
        assert stop.run(argparse.Namespace()) == 0
        assert process.wait() == -15
    finally:
        process.kill()
    assert f"(pid {process.pid}), torch imported, of /python" in capsys.readouterr().out
    assert not root.exists()
    assert stop.run(argparse.Namespace()) == 0
    assert capsys.readouterr().out == f"no launcher is kept in {root}\n"


def test_another_process_with_that_number_is_left_alone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        note = KeeperNote(process.pid, 1, time.time(), "kind", "torch", "/python", {}, True)
        with keep_folder.locked():
            note.write(keep_folder.new_folder("kind"))
        assert stop.run(argparse.Namespace()) == 0
        assert process.poll() is None
        process.kill()
    assert "no launcher is kept" in capsys.readouterr().out
    assert not root.exists()
