"""The plugin loads in every way that pytest supports, and costs nothing where it is not used."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner


@pytest.mark.parametrize("flag", [[], ["-p", "pytest_pprank"]], ids=["installed", "with -p"])
@pytest.mark.parametrize("autoload", [True, False], ids=["autoload", "no autoload"])
def test_loads(runner: Runner, flag: list[str], autoload: bool) -> None:
    runner.write(test_it="def test_it(): pass")
    env = {} if autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = runner.run(*flag, "--help", env=env)
    assert run.ret == 0
    assert ("--pp-size" in run.out) == (autoload or bool(flag))


def test_a_run_without_ranked_tests_imports_next_to_nothing(runner: Runner) -> None:
    runner.write(test_it="def test_it(): pass")
    added = _imported(runner, "pytest_pprank") - _imported(runner, "no:pytest_pprank")
    assert "pytest_pprank.plugin" in added  # checks the check itself
    ours = {name for name in added if name.startswith("pytest_pprank")}
    assert added - ours <= {"__future__"}, "no torch, no multiprocessing, nothing"
    assert not [name for name in ours if name.split(".")[1:2] in (["controller"], ["launch"])]


def _imported(runner: Runner, plugin: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "pytest", "-p", plugin]
    run = subprocess.run(command, cwd=runner.folder, capture_output=True, text=True, check=True)
    return {line.split("|")[-1].strip() for line in run.stderr.splitlines()}


def test_markers_are_declared(runner: Runner) -> None:
    run = runner.run("--markers")
    assert "@pytest.mark.pprank(pp=N, prefill=N, decode=M, tp=N, dp=N, ep=N, device=" in run.out
    assert "@pytest.mark.sglang(**server_args)" in run.out


def test_fixtures_are_described(runner: Runner) -> None:
    run = runner.run("--fixtures")
    for name in ("pprank", "process_group"):
        assert f"\n{name} [session scope]" in run.out
