"""The table of docs/support-matrix.md: releases by what the suite tests on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matrix.claims import Claim
from matrix.junit import Outcome
from matrix.runs import Run

COMMAND = "tox -e matrix"
DEVICES = ("cpu", "sim")
CAPABILITIES = {
    "test_startup": "start",
    "test_materialize": "materialize",
    "test_profiler": "profiler",
    "test_agreement": "agreement",
    "test_message_order": "order of messages",
    "test_generate": "requests",
    "test_generate_chunks": "chunks",
    "test_generate_aborts": "aborts",
    "test_generate_pressure": "memory pressure",
    "test_refusals": "refusals",
    "test_control": "control requests",
    "test_control_states": "control requests at each moment",
    "test_control_weights": "new weights",
    "test_control_features": "memory, profiles, adapters",
    "test_timeouts": "time limits",
    "test_generate_grammar": "grammars",
    "test_generate_models": "models",
    "test_outputs": "outputs",
    "test_embeddings": "outputs",
    "test_batches": "merged batches",
    "test_overlap": "overlap schedule",
    "test_cuda_graphs": "CUDA graphs",
    "test_tensor_parallel": "tensor parallelism",
    "test_expert_parallel": "expert parallelism",
    "test_dp_attention": "DP attention",
    "test_disagg_reasons": "reasons for a failure",
    "test_disagg_models": "models in prefill/decode",
    "test_disagg_aborts": "aborts in prefill/decode",
    "test_disagg_lost_aborts": "aborts on one role",
    "test_disagg_peers": "peers that fail",
    "test_disagg_stalls": "roles that stand still",
    "test_disagg_deaths": "roles that die",
    "test_disagg_several": "several instances",
    "test_disagg_alone": "prefill/decode, one stage each",
    "test_disagg": "prefill/decode",
}
"""What each file of the suite tests, in the order of the columns."""
_MOST_FAILURES = 12


@dataclass(frozen=True)
class Row:
    """A run and its tests; none if it did not reach the end of the suite."""

    run: Run
    tests: Sequence[Outcome]

    @property
    def name(self) -> str:
        """Its name in lists."""
        return f"{self.run.release} {self.run.device}"

    @property
    def verdict(self) -> str:
        """How it ended, in a word; `red, as known` is a successful environment with failures."""
        if self.run.code is None:
            return f"no end in {self.run.seconds:.0f} s"
        if not self.tests:
            return "set-up failed"
        failed = any(it.how == "failed" for it in self.tests)
        if self.run.code:
            return "red"
        return "red, as known" if failed else "green"

    @property
    def good(self) -> bool:
        """Whether it ended as expected."""
        return self.run.code == 0 and bool(self.tests)


def page(rows: Sequence[Row], releases: Sequence[str]) -> str:
    """Return the generated part of the page; `releases`: all locked ones."""
    missing = [
        f"{release} {device}"
        for device in DEVICES
        for release in releases
        if not any(row.name == f"{release} {device}" for row in rows)
    ]
    parts = [
        str(claim(rows)),
        _header(rows),
        "\n".join(table(rows)),
        *(_section("Failed", _failures(rows))),
        *(_section("Expected to fail", _folded(rows, "xfailed"))),
        *(_section("Skipped", _folded(rows, "skipped"))),
        *(_section("Off", _off(rows))),
        *([f"Not run: {', '.join(missing)}."] if missing else []),
    ]
    return "\n\n".join(parts)


def claim(rows: Sequence[Row]) -> Claim:
    """Return the claim before the table: all rows are of one tree."""
    newest = max((row.run for row in rows), key=lambda run: run.date)
    facts = {"commit": newest.commit, "tree": newest.tree, "date": newest.date, "command": COMMAND}
    return Claim(facts)


def _header(rows: Sequence[Row]) -> str:
    runs = [row.run for row in rows]
    newest = claim(rows).facts
    dates = sorted({run.date for run in runs})
    facts = [
        f"Commit {newest['commit'][:10]}, `pytest_pprank` tree {newest['tree'][:10]}",
        f"{dates[0]} to {dates[-1]}" if len(dates) > 1 else dates[0],
        f"Python {_all(run.python for run in runs)}, torch {_all(run.torch for run in runs)}",
        f"{_all(str(run.cores) for run in runs)} cores, no GPU",
        "PP=2, prefill/decode with 2 and 1 stages and as each test says",
    ]
    return "; ".join(facts) + "."


def _all(values: Iterable[str]) -> str:
    return ", ".join(sorted({it for it in values if it}))


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    modules = [*CAPABILITIES, *_unknown(rows)]
    head = ["SGLang", "device", "verdict", "seconds", *(CAPABILITIES.get(m, m) for m in modules)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        run = row.run
        cells = [cell([it for it in row.tests if it.module == module]) for module in modules]
        lines.append(_line([run.release, run.device, row.verdict, f"{run.seconds:.0f}", *cells]))
    return lines


def _unknown(rows: Sequence[Row]) -> list[str]:
    return sorted({it.module for row in rows for it in row.tests} - set(CAPABILITIES))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(tests: Sequence[Outcome]) -> str:
    """Summarize the tests of one capability."""
    counts = Counter(it.how for it in tests)
    if not counts["failed"] + counts["passed"] + counts["xfailed"]:
        return "not there"
    parts = []
    for how in ("failed", "passed", "xfailed", "skipped"):
        bugs = sorted({it.bug for it in tests if it.how == how} - {""})
        named = f" ({', '.join(bugs)})" if bugs else ""
        parts += [f"{counts[how]} {how}{named}"] if counts[how] else []
    off = sorted({why.partition(":")[0] for it in tests for why in it.off})
    return ", ".join(parts) + (f"; off: {', '.join(off)}" if off else "")


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


def _failures(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        failed = [it for it in row.tests if it.how == "failed"]
        lines += [f"{row.name}: `{it.module}::{it.test}`: {_brief(it.why)}" for it in failed][
            :_MOST_FAILURES
        ]
        if len(failed) > _MOST_FAILURES:
            lines.append(f"{row.name}: and {len(failed) - _MOST_FAILURES} more")
    return lines


def _brief(why: str, most: int = 200) -> str:
    return why if len(why) <= most else f"{why[:most]} ..."


def _folded(rows: Sequence[Row], how: str) -> list[str]:
    """Return which tests were xfailed or skipped: each reason once, with the runs."""
    return _by_run(
        rows, lambda it: [f"`{it.module}::{it.test}`: {_brief(it.why)}"] if it.how == how else []
    )


def _off(rows: Sequence[Row]) -> list[str]:
    return _by_run(rows, lambda it: it.off)


def _by_run(rows: Sequence[Row], lines: Callable[[Outcome], Iterable[str]]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        for line in dict.fromkeys(line for it in row.tests for line in lines(it)):
            found.setdefault(line, []).append(row.name)
    return [f"{line} ({_runs(names, rows)})" for line, names in found.items()]


def _runs(names: Sequence[str], rows: Sequence[Row]) -> str:
    """Name runs, shortened if they are all runs or all of one device."""
    everything = [row.name for row in rows]
    if list(names) == everything:
        return "all"
    for device in DEVICES:
        if list(names) == [it for it in everything if it.endswith(f" {device}")]:
            return f"all on {device}"
    return ", ".join(names)
