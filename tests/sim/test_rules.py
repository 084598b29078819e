"""Each rule of SEMANTICS.md as a program that runs on a GPU, too (tests/gpu/test_rules.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rules.scenarios import SCENARIOS, Machine, Scenario

from pytest_pprank.devices import sim

RULES = Path(sim.__file__).with_name("SEMANTICS.md").read_text()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_what_is_racy_is_reported_and_nothing_else(
    scenario: Scenario, found: Callable[[], list[Any]]
) -> None:
    as_written = scenario.run(Machine("sim"))
    if scenario.racy:
        assert found()
    else:
        assert as_written
        assert not found()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_the_rule_is_one_of_the_page(scenario: Scenario) -> None:
    assert f"| {scenario.rule}" in RULES or f". {scenario.rule}" in RULES
