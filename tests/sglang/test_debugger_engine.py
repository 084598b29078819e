"""The debugger's command `iterate`: the event loops of all stages, from one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pexpect")
from pty_sessions import session

if TYPE_CHECKING:
    from tests.conftest import Runner

PATIENCE = 300
"""Seconds: SGLang is imported first."""
SOURCE = """
def test_it(engine, pprank):
    rid = engine.submit(7, 4)
    breakpoint()
    engine.on_forward(lambda batch: breakpoint())  # nobody is asked while all iterate
    breakpoint()
    engine.drain()
    assert len(engine.results[rid].token_ids) == 4
"""


def test_iterations_from_one_prompt(runner: Runner) -> None:
    runner.write(test_it=SOURCE)
    with session(runner, "test_it.py", patience=PATIENCE) as run:
        run.prompt(0)
        run.type("iterate")
        assert "<engine: 2 stages, 1 iterations done here, under way: req-000>" in run.prompt(0)
        run.type("iterate 3")
        assert "<engine: 2 stages, 4 iterations done here, under way: req-000>" in run.prompt(0)
        run.type("rank 1")
        run.prompt(1)
        run.type("p engine.iterations")  # in order: one less than the stage before
        assert "\n3\n" in run.prompt(1)
        run.type("p engine.results")
        assert " of 4 came " in run.prompt(1)
        run.type("c")
        run.prompt(0)
        run.type("iterate")  # rank 1 waits at the second breakpoint, or comes to it
        run.prompt(0)
        run.type("q")
        said = run.end()
    assert "1 failed" in said
    assert run.status == 1
    runner.wait_for(lambda: not runner.processes(), "nothing is left")
