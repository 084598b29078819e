"""The output of the command: a line for each mutant, and tables by module and by operator."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from pytest_pprank.bench.judgement import Result
from pytest_pprank.mutants.outcome import Judged, Outcome, score_of

HEAD = ("mutants", "killed", "survived", "hung", "could not run", "not reached", "score %")
_COLUMNS = (
    Outcome.KILLED,
    Outcome.SURVIVED,
    Outcome.HUNG,
    Outcome.FAILED,
    Outcome.NOT_REACHED,
)


def line(each: Judged) -> str:
    """Describe one mutant with its outcome."""
    result = each.result
    took = f"{result.seconds:5.1f} s" if result is not None and result.seconds else "       "
    parts = (f"{each.outcome.value:13}", took, each.mutant.id, each.mutant.words, each.words)
    return "  ".join(part for part in parts if part.strip() or part is took).rstrip()


def tables(found: Sequence[Judged]) -> list[str]:
    """Return the lines of both tables."""
    by_module = rows(found, lambda each: each.mutant.module)
    by_operator = rows(found, lambda each: each.mutant.operator)
    return [*_table("module", by_module), "", *_table("operator", by_operator)]


def rows(found: Sequence[Judged], key: Callable[[Judged], str]) -> list[tuple[str, ...]]:
    """Return the cells of a table by `key`, as in `HEAD`, with a row of all."""
    keys = list(dict.fromkeys(map(key, found)))
    named = [(name, [each for each in found if key(each) == name]) for name in keys]
    return [_row(name, group) for name, group in [*named, ("all", list(found))]]


def _row(name: str, group: list[Judged]) -> tuple[str, ...]:
    score = score_of(group)
    counts = (score.counts[outcome] for outcome in _COLUMNS)
    return (name, str(len(group)), *(str(n) if n else "" for n in counts), score.percent)


def _table(what: str, cells: list[tuple[str, ...]]) -> Iterator[str]:
    table = [(what, *HEAD), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        name, *numbers = row
        padded = [n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join((name.ljust(widths[0]), *padded)).rstrip()


def summary(found: Sequence[Judged], seconds: float) -> str:
    """Return the last line: score, counts, and how long a mutant took in the median."""
    score = score_of(found)
    parts = [f"{score.counts[o]} {o.value}" for o in Outcome if score.counts[o]]
    took = [r.seconds for r in map(_result, found) if r is not None and r.seconds]
    median = f"; {statistics.median(took):.1f} s a mutant in the median" if took else ""
    share = f"{score.counts[Outcome.KILLED]} of {score.reached} reached mutants killed"
    percent = f" ({score.percent} %)" if score.reached else ""
    return f"{share}{percent}: {', '.join(parts)}{median}; {seconds:.0f} s"


def _result(each: Judged) -> Result | None:
    return each.result
