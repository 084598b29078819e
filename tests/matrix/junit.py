"""Reads the outcome of each test from a JUnit file of the stock suite."""

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
    """How one test ended. `how`: passed, skipped, xfailed or failed; `why`: one line.

    `bug`: the known bug that it shows. `off`: checks that could not run in it, as "name: why".
    """

    module: str
    test: str
    how: str
    why: str = ""
    bug: str = ""
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
    test = "::".join([*classes, case.get("name", "")])
    return Outcome(module, test, *_how(case), off=_off(case))


def _how(case: ElementTree.Element) -> tuple[str, str, str]:
    for child in case:
        message = child.get("message", "")
        why = message.strip().partition("\n")[0]
        if child.tag in ("failure", "error"):
            return "failed", why, _bug(child.text or "")
        if child.tag == "skipped" and child.get("type") == "pytest.xfail":
            return "xfailed", why, _bug(message) or _first_words(message)
        if child.tag == "skipped":
            return "skipped", why, ""
    return "passed", "", ""


def _bug(text: str) -> str:
    found = _BUG.search(text)
    return found.group(1) if found else ""


def _first_words(text: str) -> str:
    words = text.split()
    return " ".join(words[:_WORDS]) + (" ..." if len(words) > _WORDS else "")


def _off(case: ElementTree.Element) -> tuple[str, ...]:
    properties: Iterable[ElementTree.Element] = case.iter("property")
    return tuple(it.get("value", "") for it in properties if it.get("name") == _OFF)
