"""Compares what pytest reported with what was expected; every difference is a complaint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from chaos_case import ERROR, FAILED, PASSED, SKIPPED, XFAILED, Case, Expected

KINDS = {
    "died": re.compile(r"^rank died\b"),
    "diverged": re.compile(r"^ranks diverged\b"),
    "hung": re.compile(r"^hung\b"),
    "disagree": re.compile(r"^ranks disagree\b"),
    "collection": re.compile(r"^collection failed on a rank\b"),
    "group could not start": re.compile(r"^worker group could not start\b"),
    "group": re.compile(r"^worker group\b"),
}
"""The first words of each verdict; a report that begins with none of them is a failed test."""

_RANKS = r"ranks? ([\d,]+)"
_NAMED = {
    "failed": (rf"failed on {_RANKS} of \d+", rf"{_RANKS} failed (?:at the same place|later)"),
    "died": (r"^rank died: rank (\d+) died",),
    "diverged": (rf"{_RANKS} (?:is|are) still inside",),
    "hung": (rf"{_RANKS} (?:is|are) still inside", rf"{_RANKS} have waited for each other"),
}

Report = dict[str, Any]


@dataclass(frozen=True)
class Wrong:
    """A test whose verdict was not the expected one."""

    case: Case
    complaints: tuple[str, ...]
    text: str


def judge(case: Case, reports: list[Report]) -> Wrong | None:
    """Return what is wrong with the reports of one test; None if they are as expected."""
    complaints = _complaints(case.expected, reports)
    if not complaints:
        return None
    text = "\n".join(
        f"{r['when']}: {r['outcome']}{' (xfail)' if r['wasxfail'] else ''}\n{r['text']}"
        for r in reports
    )
    return Wrong(case, tuple(complaints), text)


def status_of(reports: list[Report]) -> str:
    """Return the outcome of a test, as pytest's last line would count it."""
    if not reports:
        return "not reported"
    failed = {r["when"] for r in reports if r["outcome"] == FAILED}
    if "call" in failed:
        return FAILED
    if failed:
        return ERROR
    if any(r["outcome"] == SKIPPED for r in reports):
        return XFAILED if any(r["wasxfail"] for r in reports) else SKIPPED
    return PASSED


def _complaints(expected: Expected, reports: list[Report]) -> list[str]:
    status = status_of(reports)
    if status != expected.status:
        return [f"it is {status!r}, and should be {expected.status!r}"]
    size = sum(r["size"] for r in reports)
    found = [f"the report has {size} characters"] if size > expected.limit else []
    failed = [r for r in reports if r["outcome"] == FAILED]
    phases = [r["when"] for r in failed]
    if expected.status in (FAILED, ERROR):
        if phases != [expected.phase]:
            return [*found, f"it fails in {phases}, and should in {expected.phase!r} alone"]
        found += _about_failure(expected, failed[0])
    return found


def kind_of(report: Report) -> str:
    """Return the verdict of a failed phase."""
    head = report["head"] or report["text"]
    return next((kind for kind, pattern in KINDS.items() if pattern.search(head)), "failed")


def _about_failure(expected: Expected, report: Report) -> list[str]:
    text = f"{report['head']}\n{report['text']}"
    kind = kind_of(report)
    found = []
    if expected.kinds and kind not in expected.kinds:
        found.append(f"the verdict is {kind!r}, and should be {' or '.join(expected.kinds)}")
    culprits = named(kind, text)
    if expected.culprits and kind in expected.kinds and culprits != expected.culprits:
        found.append(f"it names ranks {sorted(culprits)}, not {sorted(expected.culprits)}")
    words = [*expected.words, *(word for of, word in expected.words_of if of == kind)]
    found += [f"no {word!r} in it" for word in words if not re.search(word, text)]
    found += [f"{word!r} is in it" for word in expected.absent if re.search(word, text)]
    return found


def named(kind: str, text: str) -> frozenset[int]:
    """Return the ranks that a report blames."""
    patterns = _NAMED.get(kind, ())
    lists = [m for p in patterns for m in re.findall(p, text, re.MULTILINE)]
    return frozenset(int(rank) for ranks in lists for rank in ranks.split(",") if rank)
