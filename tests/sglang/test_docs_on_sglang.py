"""The blocks of README and docs that need SGLang, run as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from documentation.replay import Step, is_as_shown, modules, outcomes, printed, steps

if TYPE_CHECKING:
    from tests.conftest import Runner

SHOWN = [it for it in steps() if it.command.output and it.needs_sglang]
NOT_SHOWN = [
    it for it in steps() if not it.command.output and it.command.line.startswith("pytest ")
]
MODULES = modules(need_sglang=True)


@pytest.fixture(scope="module")
def environment(module_runner: Runner) -> Iterator[dict[str, str]]:
    """Use one launcher for all runs: importing SGLang for each of them would take minutes."""
    module_runner.deadline = 400
    own = module_runner.environment(PYTEST_ADDOPTS="--pprank-keep")
    yield own
    stop = [sys.executable, "-m", "pytest_pprank", "stop"]
    subprocess.run(stop, env=own, cwd=module_runner.folder, check=True, capture_output=True)


@pytest.mark.parametrize("step", SHOWN, ids=str)
def test_command_prints_what_the_page_shows(
    step: Step, environment: dict[str, str], tmp_path: Path
) -> None:
    found = printed(step.command, step.lay_out(tmp_path), environment)
    assert is_as_shown(step.command.output, found), f"{step.command.line}:\n{found}"


@pytest.mark.parametrize("step", NOT_SHOWN, ids=str)
def test_other_command_finds_its_tests(
    step: Step, environment: dict[str, str], tmp_path: Path
) -> None:
    """Also, its options have allowed values."""
    if "--pprank-attach" in step.command.line:
        pytest.importorskip("debugpy")
    first = step.command.line.partition(";")[0]
    found = printed(
        replace(step.command, line=f"{first} --collect-only"), step.lay_out(tmp_path), environment
    )
    assert "collected" in found, found
    assert "ERROR" not in found, found


@pytest.fixture(scope="module")
def run(module_runner: Runner, environment: dict[str, str]) -> str:
    """Run all modules of tests with one pytest; return its output."""
    for number, block in enumerate(MODULES):
        (module_runner.folder / f"test_{number}.py").write_text(block.text)
    own = {"PYTEST_ADDOPTS": environment["PYTEST_ADDOPTS"]}
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu", env=own).out


@pytest.mark.parametrize("number", range(len(MODULES)), ids=[str(it) for it in MODULES])
def test_module_passes(number: int, run: str) -> None:
    assert outcomes(number, run) == {"PASSED"}, run
