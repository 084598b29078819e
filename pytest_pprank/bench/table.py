"""The output of the command: a line for each revert when it is done, and a table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pytest_pprank.bench.judgement import Baseline, Result, Status

_NAMES = {
    (True, True): "function, request",
    (True, False): "function",
    (False, True): "request",
    (False, False): "neither",
}
HEAD = ("revert", "result", "s", "seen by", "test", "names")


def row(result: Result) -> tuple[str, ...]:
    """Return the cells of one revert, as in `HEAD`."""
    seconds = f"{result.seconds:.0f}" if result.tests or result.seconds else ""
    if not result.test:
        return (result.id, result.status.value, seconds, first_line(result.reason), "", "")
    names = _NAMES[result.names_function, result.names_request]
    seen = result.seen_by if result.status is Status.CAUGHT else first_line(result.reason)
    seen += f" (device {result.device})" if result.device else ""
    return (result.id, result.status.value, seconds, seen, result.test, names)


def table(results: Iterable[Result]) -> list[str]:
    """Return the lines of the table."""
    rows = [HEAD, *map(row, results)]
    widths = [min(60, max(len(r[i]) for r in rows)) for i in range(len(HEAD))]
    return [_line(cells, widths) for cells in rows]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if HEAD[i] == "s" else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def baseline_line(baseline: Baseline) -> str:
    """Describe the result on the unmodified SGLang in one line."""
    how = "green" if baseline.green else "RED"
    why = f": {first_line(baseline.reason)}" if baseline.reason else ""
    listed = f" ({', '.join(baseline.red)})" if baseline.red else ""
    took = f"{baseline.tests} tests in {baseline.seconds:.0f} s"
    probed = ", with the probe" if baseline.probed else ""
    return f"baseline {how}{why}{listed}: {took}{probed}"


def summary(results: Sequence[Result], seconds: float) -> str:
    """Return the last line: ``23 of 25 caught, 2 missed ...``."""
    counts = Counter(result.status for result in results)
    applied = len(results) - counts[Status.MISFIT]
    parts = [f"{counts[Status.CAUGHT]} of {applied} caught"]
    parts += [f"{counts[s]} {s.value}" for s in Status if s is not Status.CAUGHT and counts[s]]
    return f"{', '.join(parts)}; {seconds:.0f} s"


def first_line(text: str) -> str:
    """Return the first line of a text."""
    return text.strip().partition("\n")[0]
