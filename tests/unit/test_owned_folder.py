"""Folders identified by a lock: the next process distinguishes leftovers from those in use."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_pprank.launch.owned_folder import OwnedFolder, remove_leftovers


def removed(parent: Path) -> list[str]:
    return [path.name for path in remove_leftovers("it-", parent)]


def test_one_whose_owner_was_killed_is_removed_with_all_in_it(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from pytest_pprank.launch.owned_folder import OwnedFolder
folder = OwnedFolder.make("it-", {str(tmp_path)!r})
Path(folder.path, "below").mkdir()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert removed(tmp_path) == [left.name]
    assert not left.exists()


def test_one_in_use_stays_while_any_user_lives(tmp_path: Path) -> None:
    first = OwnedFolder.make("it-", tmp_path)
    second = OwnedFolder(first.path)
    os.close(first._lock)  # as if its process had died
    assert removed(tmp_path) == []
    second.remove()
    assert not second.path.exists()
    second.remove()  # the second time there is nothing to do


def test_what_is_not_of_this_kind_stays(tmp_path: Path) -> None:
    (tmp_path / "it-other-12345678").mkdir()
    (tmp_path / "that-12345678").mkdir()
    (tmp_path / "it-12345678").touch()
    (tmp_path / "it-abcdefgh").symlink_to(tmp_path / "that-12345678")
    before = sorted(tmp_path.iterdir())
    assert removed(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before


def test_it_is_named_while_it_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "it-12345678").mkdir()
    for path in remove_leftovers("it-", tmp_path):
        assert path.is_dir()
        with pytest.raises(FileNotFoundError):  # for a process that comes too late
            OwnedFolder(path)
    with pytest.raises(FileNotFoundError):
        OwnedFolder(tmp_path / "it-12345678")


def test_one_that_is_removed_between_opening_and_locking_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it-12345678"
    path.mkdir()
    lock = fcntl.flock

    def late(fd: int, how: int) -> None:
        path.rmdir()
        path.mkdir()  # another folder of that name
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileNotFoundError):
        OwnedFolder(path)


def test_without_locks_there_are_folders_and_nobody_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    folder = OwnedFolder.make("it-", tmp_path)
    assert removed(tmp_path) == []
    folder.remove()
    assert list(tmp_path.iterdir()) == []
