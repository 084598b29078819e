"""What a JUnit file of the stock suite says of each test."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

_BUG = re.compile(r"known bug ([\w.-]+):")
_OFF = "pprank_off"
_WORDS = 8
_WORSE = ("passed", "skipped", "xfailed", "failed")


@dataclass(frozen=True)
class Outcome:
    """How one test ended: `how` is passed, skipped, xfailed or failed, `why` in a few words.

    `off`: checks that could not look at it, each as "name: why".
    """

    module: str
    test: str
    how: str
    why: str = ""
    off: tuple[str, ...] = ()


def read(file: Path) -> list[Outcome]:
    """Return the tests of a JUnit file, in their order; a test may have several entries."""
    found: dict[tuple[str, str], Outcome] = {}
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        outcome = _outcome(case)
        key = (outcome.module, outcome.test)
        before = found.get(key)
        if before is None or _WORSE.index(outcome.how) > _WORSE.index(before.how):
            found[key] = outcome
    return list(found.values())


def _outcome(case: ElementTree.Element) -> Outcome:
    parts = case.get("classname", "").split(".")
    module = next((it for it in parts if it.startswith("test_")), parts[-1])
    classes = parts[parts.index(module) + 1 :]
    how, why = _how(case)
    return Outcome(module, "::".join([*classes, case.get("name", "")]), how, why, _off(case))


def _how(case: ElementTree.Element) -> tuple[str, str]:
    for child in case:
        message = child.get("message", "")
        if child.tag in ("failure", "error"):
            return "failed", _first_line(message)
        if child.tag == "skipped":
            if child.get("type") == "pytest.xfail":
                return "xfailed", bug(message)
            return "skipped", _first_line(message)
    return "passed", ""


def bug(reason: str) -> str:
    """Return the id of the known bug that a reason begins with, else its first words."""
    known = _BUG.match(reason)
    words = reason.split()
    short = " ".join(words[:_WORDS]) + (" ..." if len(words) > _WORDS else "")
    return known.group(1) if known else short


def _off(case: ElementTree.Element) -> tuple[str, ...]:
    properties: Iterable[ElementTree.Element] = case.iter("property")
    return tuple(it.get("value", "") for it in properties if it.get("name") == _OFF)


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]
