"""Known bugs of SGLang as data: which releases have them, and which tests show them.

The controller reads this during collection, so it imports neither torch nor SGLang.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from pytest_pprank.checks import SANITIZERS
from pytest_pprank.errors import UsageError, did_you_mean

FILE = Path(__file__).with_name("known_bugs.yaml")
DEVICES = ("cpu", "sim", "cuda")
_SANITIZER = "sanitizer "
_VERDICT = "verdict "
VERDICTS = ("hung", "rank died", "ranks diverged")
"""Failures that no rank can raise itself: kinds of `report.verdicts`."""


@dataclass(frozen=True)
class KnownBug:
    """One entry; the head of the YAML file explains its fields."""

    id: str
    versions: SpecifierSet
    seen: tuple[str, ...]
    symptom: str
    where: tuple[str, ...]
    see: tuple[str, ...]
    raises: str
    says: str
    link: str
    cause: str = ""
    devices: tuple[str, ...] = ()
    stages: int = 1
    red: bool = False
    strict: bool = True
    reason: str = ""

    @property
    def sanitizer(self) -> str:
        """The sanitizer whose finding shows the bug; "" if an exception or verdict does."""
        return self.raises.removeprefix(_SANITIZER) if self.raises.startswith(_SANITIZER) else ""

    @property
    def verdict(self) -> str:
        """The controller's verdict that shows the bug; "" if an exception or sanitizer does."""
        return self.raises.removeprefix(_VERDICT) if self.raises.startswith(_VERDICT) else ""

    @property
    def releases(self) -> str:
        """The releases that have the bug, in words: the lower bound first."""
        return ",".join(sorted(map(str, self.versions), reverse=True))

    @property
    def summary(self) -> str:
        """One line about the bug for reports."""
        return f"known bug {self.id}: {self.symptom}"

    def affects(self, version: str | None) -> bool:
        """Return whether that release of SGLang has the bug; None: there is no SGLang."""
        return version is not None and self.versions.contains(version, prereleases=True)

    def shows_on(self, device: str, stages: int) -> bool:
        """Return whether that kind of device shows the bug, with that many pipeline stages."""
        return stages >= self.stages and device in (self.devices or DEVICES)


@lru_cache(maxsize=1)
def known_bugs() -> tuple[KnownBug, ...]:
    """Return all entries of the file that comes with the package."""
    return read(FILE)


def bugs_named(ids: Iterable[str]) -> tuple[KnownBug, ...]:
    """Return the entries with these ids; raises UsageError for an unknown id."""
    by_id = {bug.id: bug for bug in known_bugs()}
    for each in ids:
        if each not in by_id:
            raise UsageError(
                f"there is no known bug {each!r}{did_you_mean(each, by_id)} in {FILE.name}"
            )
    return tuple(by_id[each] for each in ids)


def read(file: Path) -> tuple[KnownBug, ...]:
    """Read a file of known bugs. Raises UsageError, which lists all problems of an entry."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: {error}") from error
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise UsageError(f"{file}: must be a list of entries, each with an id")
    bugs = tuple(_bug(entry, f"{file}: {entry.get('id', entry)}") for entry in data)
    ids = [bug.id for bug in bugs]
    twice = sorted({each for each in ids if ids.count(each) > 1})
    if twice:
        raise UsageError(f"{file}: two entries have the id {', '.join(twice)}")
    return bugs


_TEXTS = ("id", "versions", "symptom", "raises", "says", "link", "cause", "reason")
_LISTS = ("seen", "where", "see", "devices")
_FLAGS = ("red", "strict")
_MAY_BE_LEFT_OUT = ("cause", "devices", "stages", "red", "strict", "reason")


def _bug(data: dict[str, Any], where: str) -> KnownBug:
    problems = [*_key_problems(data), *_type_problems(data)]
    if not problems:
        problems = [*_value_problems(data)]
    if problems:
        raise UsageError(f"{where}: " + "; ".join(problems))
    values: dict[str, Any] = {
        key: value for key, value in data.items() if key in (*_FLAGS, "stages")
    }
    values |= {key: " ".join(data[key].split()) for key in _TEXTS if key in data}
    values |= {key: tuple(data[key]) for key in _LISTS if key in data}
    bug = KnownBug(**{**values, "versions": SpecifierSet(data["versions"])})
    outside = [version for version in bug.seen if not bug.affects(version)]
    if outside:
        raise UsageError(f"{where}: seen in {', '.join(outside)}, which 'versions' leaves out")
    return bug


def _key_problems(data: Mapping[str, object]) -> Iterator[str]:
    known = [field.name for field in fields(KnownBug)]
    for key in data:
        if key not in known:
            yield f"no key {key!r}{did_you_mean(str(key), known)}"
    for key in known:
        if key not in data and key not in _MAY_BE_LEFT_OUT:
            yield f"{key!r} is missing"


def _type_problems(data: Mapping[str, object]) -> Iterator[str]:
    for key, value in data.items():
        if key in _TEXTS and not isinstance(value, str):
            yield f"{key!r} must be a text, not {value!r}"
        if key in _FLAGS and not isinstance(value, bool):
            yield f"{key!r} must be true or false, not {value!r}"
        if key == "stages" and (type(value) is not int or value < 1):
            yield f"'stages' must be a whole number from 1 up, not {value!r}"
        strings = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if key in _LISTS and not (strings and value):
            yield f"{key!r} must be a list of texts, not {value!r}"
        if key in _TEXTS and key != "link" and isinstance(value, str) and not value.strip():
            yield f"{key!r} is empty"


def _value_problems(data: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", data["id"]):
        yield f"'id' {data['id']!r} must be words in lower case with '-' between them"
    try:
        SpecifierSet(data["versions"])
    except InvalidSpecifier:
        yield f"'versions' {data['versions']!r} is no version specifier, such as '>=0.5.13,<0.5.20'"
    for device in data.get("devices", ()):
        if device not in DEVICES:
            yield f"no device {device!r}; allowed: {', '.join(DEVICES)}"
    others = [f"{_SANITIZER}{row.name}" for row in SANITIZERS]
    others += [f"{_VERDICT}{kind}" for kind in VERDICTS]
    raises = data["raises"]
    if not raises.isidentifier() and raises not in others:
        yield (
            f"'raises' {raises!r} is neither the name of an exception nor one of "
            f"{', '.join(others)}"
        )
    if not data.get("strict", True) and "reason" not in data:
        yield "'strict: false' needs a 'reason': why the order that shows it cannot be forced"
    if data.get("strict", True) and "reason" in data:
        yield "'reason' is for 'strict: false'"
    if data.get("red") and not data.get("strict", True):
        yield "'red: true' is strict: its tests fail, each time"
