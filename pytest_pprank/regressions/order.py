"""Which tests come first in a run with a revert: those that get to its code, quick ones first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pytest_pprank.regressions.cases import Case
from pytest_pprank.sglang.reverts.reached import Reached


@dataclass(frozen=True)
class Reach:
    """Which tests get to which function, and how long each test takes on unmodified SGLang.

    Only the order of tests depends on it, never what counts as a catch.
    """

    tests_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds_of: Mapping[str, float] = field(default_factory=dict)

    def first(self, case: Case, likely: Iterable[str] = ()) -> list[str]:
        """Return the tests to begin with: `likely` ones, then all that get to the revert."""
        tests = {test for target in case.present for test in self.tests_of.get(target, ())}
        by_time = sorted(tests, key=lambda test: self.seconds_of.get(test, 0.0))
        return list(dict.fromkeys([*likely, *by_time]))


def reach_of(reached: Iterable[Reached], seconds_of: Mapping[str, float]) -> Reach:
    """Sort out what a run with a probe has noted."""
    tests: dict[str, dict[str, None]] = {}
    for noted in reached:
        tests.setdefault(noted.target, {})[noted.test] = None
    return Reach({target: tuple(found) for target, found in tests.items()}, seconds_of)


def write_probe(cases: Iterable[Case], file: Path) -> None:
    """Write a revert that changes nothing, on all functions of `cases`: it only notes calls."""
    edited = dict.fromkeys(target for case in cases for target in case.present)
    patches = [{"target": target, "preamble": "pass"} for target in edited]
    probe = {"id": "probe", "title": "changes nothing", "patches": patches}
    file.write_text(yaml.safe_dump(probe), "utf-8")
