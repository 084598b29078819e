"""The findings of sanitizers in one test, on all of its ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pytest_pprank.checks import CHECKS
from pytest_pprank.faults import FAULTS
from pytest_pprank.protocol.findings import Finding, own_failure
from pytest_pprank.registry import Row
from pytest_pprank.words import plural_ranks


@dataclass
class SeenFinding:
    """A finding, with the number of times on each rank; no ranks if it is from a comparison."""

    finding: Finding
    times: dict[int, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the finding in words."""
        first, *more = self.finding.text.splitlines()
        lines = [f"{self.finding.sanitizer}: {first}", *(f"  {line}" for line in more)]
        if self.times:
            most = max(self.times.values())
            often = f", {most} times" if most > 1 else ""
            lines.append(f"  on {plural_ranks(sorted(self.times))}{often}")
        lines += [f"  {'at' if n == 0 else '  '} {at}" for n, at in enumerate(self.finding.stack)]
        if self.finding.cure:
            lines.append(f"  cure: {self.finding.cure}")
        return lines


def in_words(found: Sequence[SeenFinding]) -> str:
    """Return findings in words, each with its cure; one that follows on itself is told once."""
    lines: list[str] = []
    for cure, group in groupby(found, key=lambda seen: seen.finding.cure):
        same = list(group)
        lines += [line for seen in same for line in seen.lines()[: -1 if cure else None]]
        if cure:
            lines.append(f"  cure{f' (of these {len(same)})' if len(same) > 1 else ''}: {cure}")
    return "\n".join(lines)


class Findings:
    """Collects the findings of ranks while a test runs, and their results at its end."""

    def __init__(self, sanitizers: Sequence[str] = (), faults: Sequence[str] = ()) -> None:
        self._sanitizers = tuple(sanitizers)
        self._faults = tuple(faults)
        self._seen: dict[str, SeenFinding] = {}
        self._evidence: dict[int, dict[str, Any]] = {}
        self._abandoned = False
        self.off: dict[str, str] = {}
        """Checks that were off, with what SGLang lacks."""

    def add(self, rank: int, finding: Finding) -> None:
        """Add a finding of a rank."""
        seen = self._seen.setdefault(finding.key, SeenFinding(finding))
        seen.times.setdefault(rank, 1)

    def add_results(self, rank: int, text: str) -> None:
        """Add the results of a rank at the end of the test (host.lifecycles)."""
        nothing: dict[str, Any] = {"evidence": {}, "counts": {}, "abandoned": False}
        own = json.loads(text) if text else nothing
        self._abandoned |= own["abandoned"]
        self._evidence[rank] = own["evidence"]
        self.off.update(own.get("off", {}))
        for key, times in own["counts"].items():
            if key in self._seen:
                self._seen[key].times[rank] = times

    def compare(self) -> None:
        """Run the comparisons of all ranks' evidence. Only for a test that no rank has failed.

        Nothing is compared if a rank has abandoned its group: then the last operations of ranks
        need not match.
        """
        if not self._abandoned:
            checks = map(CHECKS.find, self.sanitizers)
            for row in filter(None, [*checks, *map(FAULTS.find, self._faults)]):
                for finding in self._compare(row):
                    self._seen.setdefault(finding.key, SeenFinding(finding))

    def _compare(self, row: Row) -> list[Finding]:
        by_rank = {rank: own.get(row.name) for rank, own in sorted(self._evidence.items())}
        try:
            compare = row.load_compare()
            return [] if compare is None else list(compare(by_rank))
        except Exception as error:  # a plugin's code must not end the run
            cure = f"put the function {row.compare!r} right, which compares what the ranks bring"
            return [own_failure(row.what, row.name, error, cure)]

    def all(self) -> Iterable[SeenFinding]:
        """Return the different findings, in the order in which they were reported."""
        return self._seen.values()

    @property
    def sanitizers(self) -> tuple[str, ...]:
        """The names of the sanitizers that have watched the test."""
        return tuple(name for name in self._sanitizers if name not in self.off)
