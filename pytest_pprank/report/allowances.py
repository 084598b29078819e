"""Allowed findings, each with a reason, from two files.

One is the user's (``--pprank-sanitize-allow``). The other is part of the package, and lists what
unmodified SGLang does intentionally.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pytest_pprank.checks import CHECKS
from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.report.findings import SeenFinding

_KEYS = ("sanitizer", "match", "reason", "test")
_OPTION = "--pprank-sanitize-allow"
_SHIPPED = Path(__file__).parent.parent / "checks" / "allowed.yaml"


@dataclass(frozen=True)
class Allowance:
    """One entry.

    `match`: texts that must all occur in the finding as it is shown. `test`: a pattern of node ids.
    """

    sanitizer: str
    match: tuple[str, ...]
    reason: str
    test: str = "*"

    def covers(self, seen: SeenFinding, nodeid: str) -> bool:
        """Return whether this entry allows a finding in a test."""
        if seen.finding.sanitizer != self.sanitizer or not fnmatchcase(nodeid, self.test):
            return False
        text = "\n".join(seen.lines())
        return all(words in text for words in self.match)

    def __str__(self) -> str:
        where = "" if self.test == "*" else f" in {self.test}"
        words = " and ".join(map(repr, self.match))
        return f"{self.sanitizer}: {words}{where} ({self.reason})"


class Allowances:
    """All entries, and which of them have matched in this run."""

    def __init__(
        self, entries: tuple[Allowance, ...] = (), shipped: tuple[Allowance, ...] = ()
    ) -> None:
        self._entries = entries
        self._all = (*entries, *shipped)
        self._used: set[Allowance] = set()
        self._watched: set[str] = set()

    def sift(self, found: list[SeenFinding], nodeid: str) -> list[SeenFinding]:
        """Return the findings in a test that no entry allows."""
        return [seen for seen in found if not self._allowed(seen, nodeid)]

    def _allowed(self, seen: SeenFinding, nodeid: str) -> bool:
        covering = {entry for entry in self._all if entry.covers(seen, nodeid)}
        self._used |= covering
        return bool(covering)

    def note_watched(self, sanitizers: tuple[str, ...]) -> None:
        """Note which sanitizers have watched a test."""
        self._watched.update(sanitizers)

    def unused(self) -> list[Allowance]:
        """Return the user's entries that matched nothing although their sanitizer was in use."""
        return [e for e in self._entries if e.sanitizer in self._watched and e not in self._used]


def read_allowances(file: str) -> Allowances:
    """Read the user's file (none if `file` is empty) and the one of the package.

    Raises UsageError for any error in a file.
    """
    return Allowances(_read(file) if file else (), _read(str(_SHIPPED)))


def _read(file: str) -> tuple[Allowance, ...]:
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{_OPTION}: {file}: {error}") from error
    if not isinstance(data, list):
        raise UsageError(f"{_OPTION}: {file}: must be a list of entries with {', '.join(_KEYS)}")
    return tuple(_entry(entry, f"{_OPTION}: {file}: {entry!r}") for entry in data)


def _entry(data: Any, where: str) -> Allowance:
    texts = [v for k, v in data.items() if k != "match"] if isinstance(data, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{where}: an entry has {', '.join(_KEYS)}, each a text")
    for key in data:
        if key not in _KEYS:
            raise UsageError(f"{where}: no key {key!r}{did_you_mean(key, _KEYS)}")
    for key in _KEYS[:3]:
        if not str(data.get(key) or "").strip():
            raise UsageError(f"{where}: {key!r} is missing or empty")
    match = data["match"]
    match = match if isinstance(match, list) else [match]
    if not all(isinstance(words, str) and words.strip() for words in match):
        raise UsageError(f"{where}: 'match' is a text, or a list of texts, and none of them empty")
    names = CHECKS.names
    if data["sanitizer"] not in names:
        near = did_you_mean(data["sanitizer"], names)
        raise UsageError(f"{where}: there is no sanitizer {data['sanitizer']!r}{near}")
    return Allowance(**{**data, "match": tuple(match)})
