"""The results as one self-contained HTML file: the source with its mutants in place."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from pytest_pprank.bench.results import Bench
from pytest_pprank.mutants import table
from pytest_pprank.mutants.outcome import Judged, Outcome, score_of
from pytest_pprank.mutants.source import Function

_STYLE = """
:root { --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --code: #f6f8fa; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #30363d; --code: #161b22; --back: #0d1117; }
}
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem;
  padding: 0 1rem; color: var(--text); background: var(--back); }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.sum { font-size: 1.15rem; margin-top: 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); } th:first-child, td:first-child { text-align: left; }
tr:last-child td { font-weight: 600; }
summary { cursor: pointer; padding: .25rem 0; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: var(--code); padding: .6rem; overflow: auto; margin: .3rem 0; }
.n { color: var(--soft); user-select: none; }
.tag { border-radius: 1rem; padding: .05rem .6rem; font-weight: 600; white-space: nowrap;
  font-size: 13px; background: #eaeef2; color: #59636e; }
.survived, .hung, .failed { background: #ffebe9; color: #a40e26; }
.killed { background: #dafbe1; color: #116329; }
.m { display: block; border-left: 4px solid var(--line); padding: .1rem .6rem; margin: .1rem 0;
  white-space: normal; background: var(--back); }
.m.survived { border-color: #cf222e; } .m.killed { border-color: #1a7f37; }
.m.survived, .m.hung, .m.failed, .m.killed { background: var(--back); color: inherit; }
"""
_CLASS = {
    Outcome.SURVIVED: "survived",
    Outcome.HUNG: "hung",
    Outcome.FAILED: "failed",
    Outcome.KILLED: "killed",
}
_AROUND = 4
"""How many lines of source are shown before and after a mutant."""


def page(bench: Bench, found: Sequence[Judged]) -> str:
    """Return the whole page: tables, then functions, those with survivors first."""
    version = str(bench.key["sglang"]).partition(" ")[0]
    seconds = sum(each.result.seconds for each in found if each.result is not None)
    by_module = _table("module", table.rows(found, lambda each: each.mutant.module))
    by_operator = _table("operator", table.rows(found, lambda each: each.mutant.operator))
    functions = "\n".join(_function(group) for group in _groups(found))
    options = bench.key["options"]
    tests = " ".join(options["arguments"]) or "the stock suite"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mutants of SGLang {_text(version)}</title><style>{_STYLE}</style></head><body>
<h1>Mutants of SGLang {_text(version)}</h1>
<p class="sum">{_text(table.summary(found, seconds))} of runs</p>
<p class="soft">Tests: {_text(tests)}. Stages {_text(options["sizes"])}, device
{_text(options["device"])}. A mutant is one change of one place; the score is the part that made a
test red, of those that a test came to.</p>
{by_module}{by_operator}
<h2>Functions</h2>
{functions}
</body></html>
"""


def _groups(found: Sequence[Judged]) -> list[list[Judged]]:
    """Return the mutants by function; functions with most survivors first."""
    groups: dict[str, list[Judged]] = {}
    for each in found:
        groups.setdefault(each.mutant.function.target, []).append(each)
    return sorted(groups.values(), key=_severity, reverse=True)


def _severity(group: list[Judged]) -> tuple[int, ...]:
    counts = score_of(group).counts
    order = (Outcome.SURVIVED, Outcome.HUNG, Outcome.FAILED, Outcome.NOT_REACHED)
    return tuple(counts[outcome] for outcome in order)


def _function(group: list[Judged]) -> str:
    function = group[0].mutant.function
    counts = score_of(group).counts
    tags = " ".join(_tag(o, f"{counts[o]} {o.value}") for o in Outcome if counts[o])
    is_open = " open" if counts[Outcome.SURVIVED] or counts[Outcome.HUNG] else ""
    head = f"<code>{_text(function.name)}</code> {tags}"
    where = f'<span class="soft">{_text(function.module)}</span>'
    lines = "".join(_lines(function, group))
    return f"<details{is_open}><summary>{head} {where}</summary><pre>{lines}</pre></details>"


def _lines(function: Function, group: list[Judged]) -> Iterator[str]:
    """Yield lines of source near the mutants, each mutant below the line that it changes."""
    at: dict[int, list[Judged]] = {}
    for each in group:
        at.setdefault(each.mutant.place.start[0], []).append(each)
    shown = {row for near in at for row in range(near - _AROUND, near + _AROUND + 1)} | {0}
    left_out = False
    for row, line in enumerate(function.source.lines):
        if row not in shown:
            left_out = True
            continue
        if left_out:
            yield '<span class="n">  ...</span>\n'
            left_out = False
        number = function.source.number_of(row)
        yield f'<span class="n">{number:5} </span>{_text(line)}\n'
        yield from map(
            _mutant, sorted(at.get(row, ()), key=lambda each: list(Outcome).index(each.outcome))
        )


def _mutant(each: Judged) -> str:
    result = each.result
    why = f"&middot; {_text(each.words)}" if each.words else ""
    if result is not None and result.test:
        why += f' <span class="soft">in {_text(result.test)}</span>'
    text = result.text.strip() if result is not None and each.outcome is Outcome.KILLED else ""
    more = f"<details><summary>{why}</summary><pre>{_text(text)}</pre></details>" if text else why
    head = f"{_tag(each.outcome, each.outcome.value)} <b>{_text(each.mutant.operator)}</b>"
    words = f"<code>{_text(each.mutant.words)}</code>"
    name = f'<span class="soft">{_text(each.mutant.id)}</span>'
    kind = _CLASS.get(each.outcome, "")
    return f'<span class="m {kind}">{head} {words} {more}<br>{name}</span>'


def _table(what: str, cells: list[tuple[str, ...]]) -> str:
    heads = "".join(f"<th>{_text(head)}</th>" for head in (what, *table.HEAD))
    body = "".join(f"<tr>{''.join(f'<td>{_text(c)}</td>' for c in row)}</tr>" for row in cells)
    return f"<table><tr>{heads}</tr>{body}</table>"


def _tag(outcome: Outcome, text: str) -> str:
    return f'<span class="tag {_CLASS.get(outcome, "")}">{_text(text)}</span>'


def _text(value: object) -> str:
    return html.escape(str(value))
