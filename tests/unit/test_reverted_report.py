"""The summary of a run with a reverted fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.report.reverted import RevertReport
from pytest_pprank.sglang.reverts import reached

RAN = ["t.py::a", "t.py::b", "t.py::c"]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> RevertReport:
    monkeypatch.delenv(reached.VARIABLE, raising=False)
    monkeypatch.setattr(reached, "_seen", set())
    return RevertReport(("26883: a fix",))


def reach(report: RevertReport, folder: Path, monkeypatch: pytest.MonkeyPatch, *tests: str) -> None:
    """Record what a rank would record, in the same way."""
    for name, value in report.environment(folder).items():
        monkeypatch.setenv(name, value)
    for test in tests:
        monkeypatch.setenv("PYTEST_CURRENT_TEST", f"{test} (call)")
        reached.note("a.function")
    report.collect(folder)


def test_nobody_came_to_it(
    report: RevertReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(report, tmp_path, monkeypatch, "other.py::x")
    assert list(report.lines(RAN, [])) == [
        "reverted: 26883: a fix",
        "no test came to the reverted code (3 ran): this run says nothing",
    ]


def test_none_went_red(
    report: RevertReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(report, tmp_path, monkeypatch, "t.py::a", "t.py::b")
    assert (
        "2 of 3 tests came to the reverted code; none of them went red"
        in (list(report.lines(RAN, ["t.py::c"]))[-1])
    )


def test_some_went_red(
    report: RevertReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(report, tmp_path, monkeypatch, "t.py::a", "t.py::c")
    lines = list(report.lines(RAN, ["t.py::c"]))
    assert lines[-1] == "2 of 3 tests came to the reverted code; 1 of them went red"


def test_the_file_that_somebody_else_reads_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(reached.VARIABLE, str(tmp_path / "theirs"))
    assert RevertReport(("26883: a fix",)).environment(tmp_path) == {}


def test_nothing_without_a_revert(tmp_path: Path) -> None:
    report = RevertReport(())
    report.collect(tmp_path)
    assert report.environment(tmp_path) == {}
    assert list(report.lines(RAN, [])) == []
