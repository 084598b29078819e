"""The line by which SGLang's runner does not run a file with a red ranked test again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_pprank.report.retries import line_for_runner
from pytest_pprank.report.verdict import PROPERTY


def failed(name: str, *properties: tuple[str, object]) -> pytest.TestReport:
    report = pytest.TestReport(name, ("f", 1, name), {}, "failed", "no", "call")
    report.user_properties = list(properties)
    return report


RANKED = [failed("a", (PROPERTY, "hung")), failed("b", ("x", 1), (PROPERTY, "failed"))]


@pytest.fixture
def begun(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Config:
    """The configuration of a run that a test file has begun."""
    file = pytester.makepyfile(test_it="")
    monkeypatch.setattr(sys, "argv", ["./test_it.py", "-f"])
    return pytester.parseconfig(file)


def test_red_ranked_tests(begun: pytest.Config) -> None:
    stats = {"failed": [RANKED[0], failed("plain")], "error": [RANKED[1], RANKED[0]]}
    line = line_for_runner(begun, stats)
    assert line.startswith("pprank: RuntimeError: 2 ranked tests failed; SGLang's runner must not")
    assert "1 ranked test failed" in line_for_runner(begun, {"failed": RANKED[:1]})


def test_only_plain_tests_are_red(begun: pytest.Config) -> None:
    assert line_for_runner(begun, {"failed": [failed("plain")], "passed": RANKED}) == ""


@pytest.mark.parametrize("program", ["/env/bin/pytest", "/lib/pytest/__main__.py", "other.py", ""])
def test_run_of_another_kind(
    begun: pytest.Config, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "-f"])
    assert line_for_runner(begun, {"failed": RANKED}) == ""


def test_one_test_of_the_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pytester.makepyfile(test_it="def test_a(): pass")
    monkeypatch.setattr(sys, "argv", [str(Path(file))])
    config = pytester.parseconfig(f"{file}::test_a")
    assert line_for_runner(config, {"failed": RANKED}) != ""
