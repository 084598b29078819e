"""Orders the tests of a run with a revert: first those that reach its code, fast ones first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.runs import Run

_COMMON = frozenset({"the", "and", "that", "are", "test", "pp2", "for", "fix"})


@dataclass(frozen=True)
class Reach:
    """Which tests call which functions.

    `tests_of`: test ids by function. By test id: `about`, the test's name and docstring;
    `seconds_of`, its duration on the unmodified SGLang; `topologies`. Each topology has processes
    of its own, so a revert that no test of a topology calls cannot affect that topology's tests.
    `in_setup`: the tests of `tests_of` that called the function while they were set up.
    None of this influences which test counts as a catch.
    """

    tests_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    seconds_of: Mapping[str, float] = field(default_factory=dict)
    topologies: Mapping[str, str] = field(default_factory=dict)
    in_setup: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def knows(self, case: Case) -> bool:
        """Return whether it has been determined which tests call this revert's functions."""
        return all(target in self.tests_of for target in case.present)

    def _tests(self, case: Case) -> set[str]:
        return {test for target in case.present for test in self.tests_of.get(target, ())}

    def untouched(self, case: Case) -> set[str]:
        """Return the tests that the revert cannot affect; all of them if none reaches it.

        With `Case.only_reaching`, these are all tests that do not come to the edit. A set-up may
        be for later tests, too: if one came to the edit, so does each test of its topology.
        """
        tests = self._tests(case)
        if case.only_reaching and self.knows(case) and tests & self.topologies.keys():
            return self._not_reaching(case, tests)
        if not self.knows(case) or not tests <= self.topologies.keys():
            return set()  # also if code outside of tests reached it
        touched = {self.topologies[test] for test in tests}
        return {test for test, topology in self.topologies.items() if topology not in touched}

    def _not_reaching(self, case: Case, tests: set[str]) -> set[str]:
        set_up = {test for target in case.present for test in self.in_setup.get(target, ())}
        kept = {self.topologies[test] for test in set_up if test in self.topologies}
        all_tests = self.topologies.items()
        runs = [test for test, topology in all_tests if test in tests or topology in kept]
        if case.most_tests is not None:
            places = {test: place for place, test in enumerate(self.first(case))}
            runs.sort(
                key=lambda test: (places.get(test, len(places)), self.seconds_of.get(test, 0))
            )
            runs = runs[: case.most_tests]
        return self.topologies.keys() - set(runs)

    def first(self, case: Case, likely: Iterable[str] = ()) -> list[str]:
        """Return the tests to run first: `likely` ones, then all that reach the revert.

        The latter are sorted by similarity of their words to the revert's, then by duration.
        """
        tests = self._tests(case)
        likeness = self._likeness(case, tests)
        ranked = sorted(tests, key=lambda t: (-likeness[t], self.seconds_of.get(t, 0.0), t))
        return list(dict.fromkeys([*likely, *ranked]))

    def _likeness(self, case: Case, tests: Iterable[str]) -> dict[str, float]:
        """Return, by test, how many words it shares with the revert; rare words count more."""
        wanted = _words(" ".join([case.id, case.revert.title, *case.functions]))
        said = {test: _words(self.about.get(test, test)) for test in tests}
        uses = Counter(word for words in said.values() for word in words)
        return {t: sum(1 / uses[w] for w in sorted(words & wanted)) for t, words in said.items()}


def reach_of(run: Run) -> Reach:
    """Build a Reach from the records of a run with a probe."""
    tests: dict[str, dict[str, None]] = {}
    in_setup: dict[str, dict[str, None]] = {}
    for noted in run.reached:
        tests.setdefault(noted.target, {})[noted.test] = None
        if noted.phase == "setup":
            in_setup.setdefault(noted.target, {})[noted.test] = None
    about = {test: f"{test} {doc}" for test, doc in run.docs.items()}
    by_target = {target: tuple(found) for target, found in tests.items()}
    set_up = {target: tuple(found) for target, found in in_setup.items()}
    return Reach(by_target, about, dict(run.seconds_of), dict(run.topologies), set_up)


def _words(text: str) -> set[str]:
    """Return numbers (of PRs) and prefixes of words, so that "aborts" equals "aborted"."""
    words = re.findall(r"\d+|[a-z]+", text.lower())
    return {word if word.isdigit() else word[:5] for word in words if len(word) > 2} - _COMMON


def write_probe(cases: Iterable[Case], file: Path) -> None:
    """Write a revert of all functions of `cases` that changes nothing but records their calls."""
    edited = dict.fromkeys(target for case in cases for target in case.present)
    patches = [{"target": target, "preamble": "pass"} for target in edited]
    probe = {"id": "probe", "title": "changes nothing", "patches": patches}
    file.write_text(yaml.safe_dump(probe), "utf-8")
