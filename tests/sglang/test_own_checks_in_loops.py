"""Checks and faults of other plugins with the real event loops, and the example of one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TEST = "test_prompt_keeps_to_the_budget"
LIMIT = "@pytest.mark.sglang(chunked_prefill_size=64)\n"
PLUGIN = """
    from pytest_pprank import CheckRow, FaultRow, Perturbation, Sanitizer


    def fail(self, *_):
        raise ValueError("I am no good")


    class InLoop(Sanitizer):
        loop = fail


    class InIteration(Sanitizer):
        iteration = fail


    class AtQuiescence(Sanitizer):
        quiescent = fail


    class InListener(Sanitizer):
        def begin(self):
            self.watch.listen("init_new", self.made)

        made = fail


    class Undeclared(Sanitizer):
        def begin(self):
            self.watch.listen("schedule", print)


    numbers = []


    class Pauses(Perturbation):
        def begin(self):
            numbers.clear()

        def iteration(self, number):
            numbers.append(number)
            if self.disturbance.dice.draw("it") < 0.5:
                self.disturbance.strike()


    def pytest_pprank_register_checks():
        kinds = (InLoop, InIteration, AtQuiescence, InListener, Undeclared)
        hooks = ["init_new"]
        return [CheckRow(k.__name__, "of a test", k, hooks=hooks, opt_in=True) for k in kinds]


    def pytest_pprank_register_faults():
        return [FaultRow("pauses", "of a test", Pauses)]
"""
TESTS = """
    import own_lives
    import pytest


    @pytest.mark.parametrize(
        "which",
        [
            pytest.param(name, marks=pytest.mark.pprank(sanitize=[name]))
            for name in ("InLoop", "InIteration", "AtQuiescence", "InListener", "Undeclared")
        ],
    )
    def test_broken(engine, which):
        assert len(engine.generate([9], max_new_tokens=2)[0].token_ids) == 2


    @pytest.mark.pprank(perturb="3:pauses")
    def test_numbers(engine, pprank):
        engine.step(10)
        assert own_lives.numbers == list(range(10 - pprank.stage))


    @pytest.mark.pprank(perturb="3:pauses")
    def test_told(engine):
        engine.step(10)
        assert engine.forwards, "to see what is told"
"""


@pytest.fixture(scope="module")
def run(module_runner: Any) -> Any:
    folder = module_runner.folder
    shutil.copytree(EXAMPLES / "own_sanitizer", folder / "own_sanitizer")
    shutil.copy(EXAMPLES / "conftest.py", folder)
    green = folder / "own_sanitizer" / "test_token_budget.py"
    source = green.read_text()
    assert LIMIT in source
    bug = source.replace(LIMIT, "").replace(TEST, "test_bug")
    (folder / "test_bug.py").write_text(bug)
    module_runner.write(own_lives=PLUGIN, test_own_lives=TESTS)
    module_runner.deadline = 300
    where = ["--pp-size", "2", "--pprank-device", "cpu", "-p", "own_lives"]
    files = ["own_sanitizer", "test_bug.py", "test_own_lives.py"]
    return module_runner.run(*where, *files, env={"PYTHONPATH": _path(folder)})


def _path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def test_example_is_green(run: Any) -> None:
    assert run.outcome(f"{TEST}[pp2]") == "PASSED"


def test_example_is_red_with_its_bug(run: Any) -> None:
    failure = run.findings("test_bug[pp2]")
    assert "token_budget: a forward of 150 tokens, more than 64: extend of req-000" in failure
    assert "on ranks 0,1" in failure
    where = re.findall(r"^ +(?:at)? +(\S+):\d+ in (\w+)", failure, re.MULTILINE)
    assert where
    assert not any("token_budget" in file or "pytest_pprank" in file for file, _ in where)
    assert "cure: @pytest.mark.sglang(chunked_prefill_size=64)" in failure


@pytest.mark.parametrize("which", ["InLoop", "InIteration", "AtQuiescence", "InListener"])
def test_own_failure_is_not_sglangs(run: Any, which: str) -> None:
    test = f"test_broken[{which}-pp2]"
    assert run.outcome(test) == "FAILED"
    failure = run.failure(test)
    assert f"sanitizer: {which}: the sanitizer itself failed (ValueError: I am no good)" in failure
    assert "on ranks 0,1\n" in failure
    assert "event loop failed" not in failure


def test_seam_that_was_not_declared(run: Any) -> None:
    failure = run.failure("test_broken[Undeclared-pp2]")
    assert "'schedule' is not among the hooks of sanitizer 'Undeclared'" in failure


def test_iterations_of_a_fault(run: Any) -> None:
    assert run.outcome("test_numbers[pp2]") == "PASSED"
    assert re.search(r"  ranks? [01,]+: pauses \d times", run.failure("test_told[pp2]"))
