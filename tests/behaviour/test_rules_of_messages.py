"""Rules of messages and collectives on device sim; tests/gpu runs the same tests on GPUs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from rules.messages import RACY, SOURCE, TESTS

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

pytestmark = pytest.mark.skipif(not find_spec("torch"), reason="device sim needs torch")


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    return module_runner.run("--pp-size=2", "--pprank-device=sim", "--pprank-lease=off")


@pytest.mark.parametrize("test", TESTS)
def test_racy_ones_are_reported(run: Run, test: str) -> None:
    if test in RACY:
        assert "streams: " in run.findings(f"{test}[pp2]") + run.failure(f"{test}[pp2]")
    else:
        assert run.outcome(f"{test}[pp2]") == "PASSED"
