"""Wrong input: one clear message, exit code 4, and no process was started for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

RANKED = """
    import pytest
    {mark}
    def test_it(pprank): pass
"""


def usage_error(runner: Runner, *args: str, mark: str = "") -> str:
    runner.write(test_it=RANKED.format(mark=mark))
    run = runner.run("-p", "pytest_pprank", "--pprank-device=cpu", *args)
    assert run.ret == pytest.ExitCode.USAGE_ERROR, run.out
    assert "Traceback" not in run.out
    # stderr's line may come before or after what stdout had buffered
    return run.out[run.out.index("ERROR: ") :].partition("\n\n")[0]


@pytest.mark.parametrize("size", ["0", "-1", "two", "2,x"])
def test_bad_size(runner: Runner, size: str) -> None:
    error = usage_error(runner, "--pp-size", size)
    assert f"--pp-size: '{size}' is not a size" in error


def test_no_size(runner: Runner) -> None:
    error = usage_error(runner)
    assert "--pp-size N" in error
    assert "@pytest.mark.pprank(pp=N)" in error


def test_no_size_is_no_error_for_tests_that_are_deselected(runner: Runner) -> None:
    runner.write(test_it=RANKED.format(mark="") + "\n    def test_plain(): pass")
    run = runner.run("-k", "plain")
    assert run.ret == 0, run.out


def test_unknown_marker_keyword(runner: Runner) -> None:
    error = usage_error(runner, "--pp-size=2", mark="@pytest.mark.pprank(stages=2)")
    assert "has no keyword 'stages'" in error
    assert "allowed: pp, prefill, decode, tp, dp, ep, device, fresh, timeout, sanitize" in error


def test_unknown_revert(runner: Runner) -> None:
    error = usage_error(runner, "--pp-size=2", "--pprank-revert=99999")
    assert "99999" in error
    assert "26883" in error  # the known ones are listed


def test_missing_revert_file(runner: Runner) -> None:
    error = usage_error(runner, "--pp-size=2", "--pprank-revert=nowhere/fix.yaml")
    assert "nowhere/fix.yaml" in error
