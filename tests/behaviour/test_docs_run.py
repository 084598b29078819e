"""The blocks of README and docs that need only torch, run as a reader would run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from documentation.replay import Step, is_as_shown, modules, outcomes, printed, steps

if TYPE_CHECKING:
    from tests.conftest import Runner

SHOWN = [it for it in steps() if it.command.output and not it.needs_sglang]
MODULES = modules(need_sglang=False)


@pytest.mark.parametrize("step", SHOWN, ids=str)
def test_command_prints_what_the_page_shows(step: Step, runner: Runner) -> None:
    found = printed(step.command, step.lay_out(runner.folder), runner.environment())
    assert is_as_shown(step.command.output, found), f"{step.command.line}:\n{found}"


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> str:
    """Run all modules of tests with one pytest; return its output."""
    for number, block in enumerate(MODULES):
        (module_runner.folder / f"test_{number}.py").write_text(block.text)
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu").out


@pytest.mark.parametrize("number", range(len(MODULES)), ids=[str(it) for it in MODULES])
def test_module_passes(number: int, run: str) -> None:
    assert outcomes(number, run) == {"PASSED"}, run
