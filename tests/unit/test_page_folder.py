"""The folder of a page: what is replaced, and what is refused at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.report.page.folder import INDEX, MARK, PARTS, TRACE, check, prepare


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError, match=f"^--pprank-report: '{re.escape(str(folder))}' ") as told:
        check(folder)
    return str(told.value)


def former(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / INDEX).write_text(f"<!DOCTYPE html>\n{MARK}\n")
    (folder / TRACE).write_text("{}")
    (folder / PARTS).mkdir()
    (folder / PARTS / "main-000001.test.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["new", "new/and/below"])
def test_a_new_folder_is_made(tmp_path: Path, name: str) -> None:
    check(tmp_path / name)
    assert list(tmp_path.iterdir()) == [], "checking must not make anything"
    assert prepare(tmp_path / name).is_dir()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    check(tmp_path)
    prepare(tmp_path)


def test_a_former_page_is_replaced(tmp_path: Path) -> None:
    folder = former(tmp_path / "page")
    check(folder)
    parts = prepare(folder)
    assert [entry.name for entry in folder.iterdir()] == [PARTS]
    assert list(parts.iterdir()) == []


def test_what_a_killed_run_has_left_is_replaced(tmp_path: Path) -> None:
    folder = former(tmp_path / "page")
    (folder / INDEX).unlink()
    (folder / TRACE).unlink()
    check(folder)
    assert list(prepare(folder).iterdir()) == []


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    folder = former(tmp_path / "page")
    (folder / "thesis.txt").write_text("years of work")
    (folder / "zz").write_text("")
    told = refusal(folder)
    assert "(thesis.txt and 1 more), which would be lost; allowed: a new or empty folder" in told
    assert (folder / INDEX).exists()


def test_somebody_elses_page_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("<!DOCTYPE html>\n<title>mine</title>")
    assert f"has something else in it ({INDEX})" in refusal(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")
    assert "cannot be written" in refusal(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(tmp_path / "below")


def test_a_place_where_nothing_can_be_made_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--pprank-report: '/proc/page' cannot be written "):
        prepare(Path("/proc/page"))
