"""Judges whether a run of the stock suite failed for its known bugs, and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pytest_pprank.errors import UsageError
from pytest_pprank.known.bugs import KnownBug


@dataclass(frozen=True)
class Case:
    """A test in a junit file; `failure`: the texts of all its failures, "" if it has none."""

    test: str
    name: str
    failed: bool
    failure: str = ""


def judge(cases: Sequence[Case], red: Sequence[KnownBug]) -> list[str]:
    """Return how the failures differ from those that these bugs cause; empty if they do not.

    There is no difference if each test that shows a bug failed, with the words of that bug and in
    each of its parametrizations, and no other test failed.
    """
    if not cases:
        return ["no test was run"]
    expected = {test: bug for bug in red for test in bug.see}
    ran = {case.test for case in cases}
    problems = [
        f"{test}: was not run, and shows known bug {bug.id}"
        for test, bug in expected.items()
        if test not in ran
    ]
    return [*problems, *(word for case in cases for word in _wrong(case, expected.get(case.test)))]


def _wrong(case: Case, bug: KnownBug | None) -> Iterator[str]:
    if bug is None and case.failed:
        yield f"{case.name}: failed, and not for a known bug: {_first_line(case.failure)}"
    elif bug is not None and not case.failed:
        yield f"{case.name}: did not fail: known bug {bug.id} did not show"
    elif bug is not None and bug.says not in case.failure:
        yield (
            f"{case.name}: failed, but not by known bug {bug.id}, which says {bug.says!r}: "
            + _first_line(case.failure)
        )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]


def read_junit(file: Path) -> list[Case]:
    """Read a file written by ``pytest --junitxml``. Raises UsageError."""
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UsageError(f"{file}: {error}") from error
    cases: dict[str, Case] = {}
    for element in root.iter("testcase"):
        place = element.get("classname", "").split(".")
        name = "::".join([*_file_and_classes(place), element.get("name", "")])
        words = [
            f"{child.get('message', '')}\n{child.text or ''}"
            for child in element
            if child.tag in ("failure", "error")
        ]
        before = cases.get(name)  # a test whose call and teardown both fail occurs twice
        failed = bool(words) or (before is not None and before.failed)
        words += [before.failure] if before is not None else []
        test = re.sub(r"\[.*\]$", "", name)
        cases[name] = Case(test, name, failed, "\n".join(words).strip())
    return list(cases.values())


def _file_and_classes(place: Sequence[str]) -> Iterator[str]:
    """Turn ``[..., "suite", "test_x", "TestY"]`` into ``test_x.py`` and ``TestY``."""
    for number, part in enumerate(place):
        if part.startswith("test_"):
            yield f"{part}.py"
            yield from place[number + 1 :]
            return
    yield from place
