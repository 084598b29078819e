"""The rules of device sim, on a GPU: what sim calls racy shows other values, the rest does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from rules.messages import SOURCE, TESTS
from rules.scenarios import SCENARIOS, Machine, Scenario

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TRIES = 3


@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if not each.racy], ids=lambda each: each.name
)
def test_ordered_on_a_gpu(scenario: Scenario) -> None:
    assert all(scenario.run(Machine("cuda")) for _ in range(TRIES))


@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if each.racy], ids=lambda each: each.name
)
def test_racy_on_a_gpu(scenario: Scenario) -> None:
    assert not all(scenario.run(Machine("cuda")) for _ in range(TRIES))


@pytest.fixture(scope="module")
def messages(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    module_runner.deadline = 240
    return module_runner.run("-ppytest_pprank", "--pp-size=2", "--pprank-device=cuda")


@pytest.mark.parametrize("test", TESTS)
def test_messages_on_two_gpus(messages: Run, test: str) -> None:
    assert messages.outcome(f"{test}[pp2]") == "PASSED", messages.failure(f"{test}[pp2]")
