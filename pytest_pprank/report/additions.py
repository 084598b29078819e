"""Merges what other plugins have added to the reports of ranks, for the report of the test.

As with pytest-xdist, plugins add it where the test runs (`pytest_runtest_makereport`) and read it
where reports are written.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_pprank._pytest_compat import extra_attributes
from pytest_pprank.report.rank_report import FAILED, RankReport

_NOT_ADDED = frozenset({"wasxfail", "context", "nodeid", "rerun"})
"""Attributes that say how a phase ended, and of what: the merged report has its own."""


def merged_additions(ranks: Sequence[RankReport]) -> dict[str, object]:
    """Return the attributes that reports of a phase have besides pytest's own.

    An equal value of several ranks is kept once. Different lists are concatenated, mappings are
    merged. Otherwise the value of the rank that failed first is taken, or of the first rank.
    """
    first_to_fail = sorted(ranks, key=lambda r: (r.kind != FAILED, r.report.stop, r.rank))
    failed = any(r.kind == FAILED for r in ranks)
    merged: dict[str, object] = {}
    for rank in first_to_fail if failed else sorted(ranks, key=lambda r: r.rank):
        for name, value in extra_attributes(rank.report).items():
            if name not in _NOT_ADDED:
                merged[name] = _both(merged[name], value) if name in merged else value
    return merged


def _both(first: object, other: object) -> object:
    if first == other:
        return first
    if isinstance(first, list) and isinstance(other, list):
        return first + [each for each in other if each not in first]
    if isinstance(first, dict) and isinstance(other, dict):
        shared = {name: _both(first[name], other[name]) for name in first.keys() & other.keys()}
        return {**other, **first, **shared}
    if isinstance(first, str) and not first:
        return other
    return first
