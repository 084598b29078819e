"""The file of findings that are allowed, each with a reason (``--pprank-sanitize-allow``)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pytest_pprank.controller.findings import SeenFinding
from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.sanitizers import SANITIZERS

_KEYS = ("sanitizer", "match", "reason", "test")
_OPTION = "--pprank-sanitize-allow"


@dataclass(frozen=True)
class Allowance:
    """One entry. `match`: words of the finding as it is shown; `test`: pattern of node ids."""

    sanitizer: str
    match: str
    reason: str
    test: str = "*"

    def covers(self, seen: SeenFinding, nodeid: str) -> bool:
        """Whether a finding in a test is allowed by it."""
        return (
            seen.finding.sanitizer == self.sanitizer
            and self.match in "\n".join(seen.lines())
            and fnmatchcase(nodeid, self.test)
        )

    def __str__(self) -> str:
        where = "" if self.test == "*" else f" in {self.test}"
        return f"{self.sanitizer}: {self.match!r}{where} ({self.reason})"


class Allowances:
    """All entries, and which of them have been of use in this run."""

    def __init__(self, entries: tuple[Allowance, ...] = ()) -> None:
        self._entries = entries
        self._used: set[Allowance] = set()
        self._watched: set[str] = set()

    def sift(self, found: list[SeenFinding], nodeid: str) -> list[SeenFinding]:
        """Return the findings in a test that nothing allows."""
        return [seen for seen in found if not self._allowed(seen, nodeid)]

    def _allowed(self, seen: SeenFinding, nodeid: str) -> bool:
        covering = {entry for entry in self._entries if entry.covers(seen, nodeid)}
        self._used |= covering
        return bool(covering)

    def note_watched(self, sanitizers: tuple[str, ...]) -> None:
        """Note which sanitizers have watched a test."""
        self._watched.update(sanitizers)

    def useless(self) -> list[Allowance]:
        """Return the entries that have matched nothing, although their sanitizer has watched."""
        return [e for e in self._entries if e.sanitizer in self._watched and e not in self._used]


def read_allowances(file: str) -> Allowances:
    """Read the file; none without a name. Raises UsageError for all that is wrong with it."""
    if not file:
        return Allowances()
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{_OPTION}: {file}: {error}") from error
    if not isinstance(data, list):
        raise UsageError(f"{_OPTION}: {file}: must be a list of entries with {', '.join(_KEYS)}")
    return Allowances(tuple(_entry(entry, f"{_OPTION}: {file}: {entry!r}") for entry in data))


def _entry(data: Any, where: str) -> Allowance:
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        raise UsageError(f"{where}: an entry has {', '.join(_KEYS)}, each a text")
    for key in data:
        if key not in _KEYS:
            raise UsageError(f"{where}: no key {key!r}{did_you_mean(key, _KEYS)}")
    for key in _KEYS[:3]:
        if not data.get(key, "").strip():
            raise UsageError(f"{where}: {key!r} is missing or empty")
    names = [row.name for row in SANITIZERS]
    if data["sanitizer"] not in names:
        near = did_you_mean(data["sanitizer"], names)
        raise UsageError(f"{where}: there is no sanitizer {data['sanitizer']!r}{near}")
    return Allowance(**data)
