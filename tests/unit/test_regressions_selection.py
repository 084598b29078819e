"""Which of the arguments after ``--`` are tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.bench.runs import Options
from pytest_pprank.bench.selection import SUITE, selection_of


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "test_a.py").touch()
    (folder / "test_b.py").touch()
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.usefixtures("tests")
def test_options_alone_leave_the_suite() -> None:
    chosen = selection_of(("-k", "mine", "-x", "--pprank-grace=3"))
    assert chosen.tests == (SUITE,)
    assert chosen.others == ("-k", "mine", "-x", "--pprank-grace=3")


def test_relative_paths(tests: Path) -> None:
    chosen = selection_of(("mine/test_a.py::TestIt::test_one[pp2]", "mine/test_b.py", "-v"))
    assert chosen.tests == (f"{tests}/test_a.py::TestIt::test_one[pp2]", f"{tests}/test_b.py")
    assert chosen.rootdir == tests
    assert chosen.others == ("-v",)


def test_a_folder_is_its_own_rootdir(tests: Path) -> None:
    assert selection_of(("mine",)).rootdir == tests


def test_modules() -> None:
    chosen = selection_of(("pytest_pprank.suite.test_startup::test_x", "no.such.module"))
    assert chosen.tests == ("pytest_pprank.suite.test_startup::test_x",)
    assert chosen.others == ("no.such.module",)  # pytest reports the error


def test_the_command_runs_them_in_place_of_the_suite(tests: Path) -> None:
    command = Options(arguments=("mine/test_a.py", "-k", "x")).command("26883")
    assert SUITE not in command
    assert command[-2:] == ["-k", "x"]
    assert f"{tests}/test_a.py" in command
