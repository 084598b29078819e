"""Reports checks that are off because SGLang lacks a hook point: silence must not look green."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pytest

from pytest_pprank.checks import CHECKS, row_of
from pytest_pprank.report.text import PlainFailure
from pytest_pprank.sglang.events.places import HOOKS, PLACES, passes
from pytest_pprank.sglang.events.shapes import Found, SourceInspector, find_shape
from pytest_pprank.sglang.static.installed import Installed

PROPERTY = "pprank_off"
"""User property (junit.xml) of tests that a check would have watched."""
KIND = "check off"
"""The verdict (`pprank_verdict`) on a test that requests by name a check that is off."""

_ROLES = ("pp", "prefill", "decode")


def expected_off(here: Installed, sanitizers: Iterable[str]) -> dict[str, str]:
    """Return, by name, which sanitizers will be off with an SGLang, and why, from its files.

    A sanitizer that is off only for some roles is included, with these roles.
    """
    inspector = SourceInspector(here.root)
    wanted = {hook for name in sanitizers for hook in row_of(name).hooks}
    found = {place.name: find_shape(place, inspector) for place in HOOKS if place.name in wanted}
    off = {}
    for name in sanitizers:
        if lacking := {hook: found[hook] for hook in row_of(name).hooks if not found[hook].shape}:
            off[name] = f"SGLang {here} has no {_what(lacking)}{_where(lacking)}"
    return off


def _what(lacking: Mapping[str, Found]) -> str:
    return ", ".join(dict.fromkeys(it for found in lacking.values() for it in found.lacks))


def _where(lacking: Mapping[str, Found]) -> str:
    """Return for which roles something is off; empty if for all."""
    roles = [role for role in _ROLES if any(passes(hook, role) for hook in lacking)]
    return "" if len(roles) == len(_ROLES) else f" (off for {' and '.join(roles)})"


def off_lines(off: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each check that is off."""
    yield from (f"{name}: off, {why}" for name, why in off.items())


def needed_by(hook: str) -> list[str]:
    """Return what is off without a hook point, or without a place in `places.NEEDS`."""
    checks = [f"sanitizer {row.name}" for row in CHECKS.rows if hook in row.hooks]
    place = PLACES[hook]
    observed = [f"observe.on({hook!r})"] if place in HOOKS else []
    return [*checks, *place.needed_by, *observed]


class OffReport:
    """Reports checks that are off.

    Each report that such a check would be part of has a note, and so has the end of the run.
    """

    def __init__(self) -> None:
        self._tests: dict[str, int] = {}
        self._why: dict[str, str] = {}

    def add_to(
        self,
        item: pytest.Item,
        off: Mapping[str, str],
        asked: frozenset[str],
        reports: list[pytest.TestReport],
    ) -> None:
        """Add notes to the reports of a test, and fail it if it requests such a check by name."""
        for name, why in off.items():
            self._why[name] = why
            self._tests[name] = self._tests.get(name, 0) + 1
        if not off or not reports:
            return
        text = "\n".join(off_lines(off))
        for report in reports:
            report.sections.append(("pprank", text))
            report.user_properties += [(PROPERTY, line) for line in off_lines(off)]
        wanted = [name for name in off if name in asked]
        if wanted and not any(report.failed for report in reports):
            self._fail(item, wanted, reports)

    def _fail(self, item: pytest.Item, wanted: list[str], reports: list[pytest.TestReport]) -> None:
        called = next((report for report in reports if report.when == "call"), reports[-1])
        names = ", ".join(wanted)
        failure = PlainFailure(KIND, f"{names}: asked for by name, and off: {self._why[wanted[0]]}")
        failure.locate(str(item.path), (item.location[1] or 0) + 1)
        called.outcome, called.longrepr = "failed", failure
        called.user_properties.append(("pprank_verdict", KIND))

    def summary(self) -> Iterator[str]:
        """Yield a line for each check that was off in this run."""
        for name, why in self._why.items():
            count = self._tests[name]
            yield f"{name}: off in {count} test{'s' * (count != 1)}, {why}"
