"""The results as one self-contained HTML file: no script, no font, no network."""

from __future__ import annotations

import html

from pytest_pprank.bench import table
from pytest_pprank.bench.judgement import Baseline, Result, Status
from pytest_pprank.bench.results import Bench

_CLASS = {
    Status.CAUGHT: "good",
    Status.MISSED: "bad",
    Status.HUNG: "bad",
    Status.FAILED: "bad",
    Status.MISFIT: "none",
}

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem;
  padding: 0 1rem; color: #1b1f24; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
p.sum { font-size: 1.15rem; margin-top: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: #59636e; } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: #59636e; font-weight: 600; border-bottom: 2px solid #d1d9e0; }
th, td { padding: .35rem .6rem; vertical-align: top; }
tbody { border-bottom: 1px solid #e6eaef; }
table { table-layout: fixed; } th:nth-child(1) { width: 22%; } th:nth-child(2) { width: 12%; }
th:nth-child(3) { width: 6%; text-align: right; } th:nth-child(6) { width: 12%; }
td { overflow-wrap: anywhere; } tr.more td { padding-top: 0; }
td.s { text-align: right; font-variant-numeric: tabular-nums; }
code, pre, .mono { font: 13px/1.4 ui-monospace, monospace; }
pre { background: #f6f8fa; padding: .7rem; overflow: auto; max-height: 30rem; }
.tag { border-radius: 1rem; padding: .05rem .6rem; font-weight: 600; white-space: nowrap; }
.good { background: #dafbe1; color: #116329; } .bad { background: #ffebe9; color: #a40e26; }
.none { background: #eaeef2; color: #59636e; }
.what { color: #59636e; } summary { cursor: pointer; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; } pre { background: #161b22; }
  tbody { border-color: #21262d; } th { border-color: #30363d; }
}
"""


def page(bench: Bench, results: list[Result]) -> str:
    """Return the whole page."""
    rows = "\n".join(map(_row, results))
    heads = "".join(f"<th>{_text(head)}</th>" for head in table.HEAD)
    seconds = sum(result.seconds for result in results)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Regression bench: SGLang {_text(_version(bench, "sglang"))}</title>
<style>{_STYLE}</style></head><body>
<h1>Regression bench</h1>
<p class="sum">{_text(table.summary(results, seconds))} of runs</p>
<dl>{_facts(bench)}</dl>
{_baseline(bench.baseline)}
<table><thead><tr>{heads}</tr></thead>
{rows}
</table>
</body></html>
"""


def _facts(bench: Bench) -> str:
    options = bench.key["options"]
    facts = {
        "SGLang": _version(bench, "sglang"),
        "pytest-pprank": _version(bench, "pytest_pprank"),
        "torch, Python": f"{bench.key['torch']}, {bench.key['python']}",
        "stages, device": f"{options['sizes']}, {options['device']}",
    }
    if options["arguments"]:
        facts["pytest arguments"] = " ".join(options["arguments"])
    return "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())


def _version(bench: Bench, name: str) -> str:
    return str(bench.key[name]).partition(" ")[0]


def _baseline(baseline: Baseline | None) -> str:
    if baseline is None:
        return ""
    tag = "good" if baseline.green else "bad"
    line = f'<p><span class="tag {tag}">{_text(table.baseline_line(baseline))}</span></p>'
    return line + "".join(_details(test, text) for test, text in baseline.texts.items())


def _row(result: Result) -> str:
    name, status, seconds, seen, test, names = table.row(result)
    tag = f'<span class="tag {_CLASS[result.status]}">{_text(status)}</span>'
    cells = [
        f'<td><span class="mono">{_text(name)}</span></td>',
        f"<td>{tag}</td>",
        f'<td class="s">{_text(seconds)}</td>',
        f"<td>{_text(seen)}</td>",
        f'<td class="mono">{_text(_breakable(test))}</td>',
        f"<td>{_text(names)}</td>",
    ]
    # in a row of its own, because a long text would make its column wide
    below = f'<span class="what">{_text(result.title)}</span>{_more(result)}'
    more = f'<tr class="more"><td colspan="{len(cells)}">{below}</td></tr>'
    return f"<tbody><tr>{''.join(cells)}</tr>{more}</tbody>"


def _more(result: Result) -> str:
    facts: dict[str, object] = {"edits": ", ".join(result.targets), "why": result.reason}
    if result.others:
        facts["also red"] = ", ".join(result.others)
    if result.tests:
        facts["tests run"] = result.tests
    listed = "\n".join(f"{name}: {value}" for name, value in facts.items() if value)
    text = f"{listed}\n\n{result.text}" if result.text else listed
    return _details("what was said" if result.text else "more", text)


def _details(title: str, text: str) -> str:
    return f"<details><summary>{_text(title)}</summary><pre>{_text(text)}</pre></details>"


def _breakable(test: str) -> str:
    return test.replace("::", "::\u200b")


def _text(value: object) -> str:
    return html.escape(str(value))
