"""Measures what a failure, a death and a warm test cost, next to torch's own harness and torchrun.

usage: python tests/benchmarks/harness.py [--quick] [--patience S]

Two ranks: one raises, or is killed by SIGKILL, while the other waits in a blocking recv from it.
Everything is measured in this one run, on this one machine, as numbers and as ratios to this
project. Asserts nothing. Needs torch, and expecttest for torch's own harness. The peers keep their
default timeouts, so this takes minutes; --quick gives them a small one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from bench_events import DETAILS
from common import Observed, check, observe, trivial_cost
from peers import CULPRIT, WAITS, Peer, continuous, ours, under_torchrun
from processes import adopt_orphans

_CAUSE = re.compile(r"the first cause")
_PLACE = re.compile(r"\b(in|def) waits_here\b")
_SIGNAL = re.compile(r"SIGKILL")
_NUMBER = re.compile(r"(exitcode\s*: |Exited with |exit code )-9\b")
_QUICK_SECONDS = 20.0


@dataclass(frozen=True)
class Cell:
    """A measured value: seconds or milliseconds if it is a number, else words."""

    value: float | None
    words: str = ""

    def shown(self, unit: str) -> str:
        """Return it as the table shows it."""
        if self.value is None:
            return self.words or "never"
        return f"{self.value:.2f} {unit}" + (f" ({self.words})" if self.words else "")


@dataclass(frozen=True)
class Measured:
    """Measurements of one scenario in one harness; times are seconds since the fault."""

    red: Cell
    facts: Cell
    ready: Cell
    faulty: Cell
    next_test: Cell
    whole: Cell


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small timeouts for the peers")
    parser.add_argument("--patience", type=float, default=420.0, metavar="S",
                        help="end a run after so many seconds")  # fmt: skip
    parser.add_argument("--ranks", default="2,8", help="sizes for the warm test")
    given = parser.parse_args()
    adopt_orphans()
    seconds = _QUICK_SECONDS if given.quick else None
    patience = min(given.patience, 120.0) if given.quick else given.patience
    print(
        f"timeouts of the peers: {'their own defaults' if seconds is None else f'{seconds:g} s'}; "
        f"a run is ended after {patience:g} s"
    )
    makers: list[Callable[[str, float | None], Peer]] = [ours.faulty]
    if find_spec("expecttest"):
        makers.append(continuous.faulty)
    else:
        print("MultiProcContinuousTest: not measured, it needs `pip install expecttest`")
    makers.append(under_torchrun.faulty)
    _faults(makers, seconds, patience)
    _warm([int(word) for word in given.ranks.split(",")])


def _faults(
    makers: list[Callable[[str, float | None], Peer]], seconds: float | None, patience: float
) -> None:
    peers = [make("raise", seconds) for make in makers]
    failed = [_measure(peer, "raise", patience) for peer in peers]
    _title("one rank raises while its peer waits in recv", [peer.name for peer in peers])
    _row("first red report", "s", [m.red for m in failed])
    _row("the error and the peer's place told", "s", [m.facts for m in failed])
    _row("whole run, three tests", "s", [m.whole for m in failed])
    _row("the faulty test", "", [m.faulty for m in failed])
    _row("the next, innocent test", "", [m.next_test for m in failed])
    killed = [_measure(make("kill", seconds), "kill", patience) for make in makers]
    _title("one rank is killed by SIGKILL while its peer waits in recv", [p.name for p in peers])
    _row("first red report", "s", [m.red for m in killed])
    _row("signal named", "s", [m.facts for m in killed])
    _row("next test begins on all ranks after it", "s", [m.ready for m in killed])
    _row("whole run, three tests", "s", [m.whole for m in killed])
    _row("the faulty test", "", [m.faulty for m in killed])
    _row("the next, innocent test", "", [m.next_test for m in killed])


def _measure(peer: Peer, scenario: str, patience: float) -> Measured:
    observed = observe(peer.command, peer.files, {**peer.environment, DETAILS: "1"}, patience)
    if not observed.of("fault"):
        words = f"did not get to the fault: {observed.output[-1500:]}"
        lost = Cell(None, words)
        return Measured(lost, lost, lost, lost, lost, lost)
    fault = observed.of("fault")[0]["time"]
    end = observed.begin + observed.seconds
    red = [
        e["time"]
        for e in observed.of("report")
        if e["test"] == "test_2_faulty" and e["outcome"] == "failed"
    ]
    first = min(red, default=None)
    never = "never" if observed.ended else f"not within {end - fault:.0f} s"
    began = [e["time"] for e in observed.of("began")]
    return Measured(
        red=Cell(first - fault if first else None, never if first is None else ""),
        facts=_facts(observed, scenario, fault, never),
        ready=Cell(max(began) - first) if first and len(began) == 2 else Cell(None, never),
        faulty=Cell(None, _outcome(observed, "test_2_faulty")),
        next_test=Cell(None, _outcome(observed, "test_3_innocent")),
        whole=Cell(observed.seconds, "" if observed.ended else "and ended by us"),
    )


def _facts(observed: Observed, scenario: str, fault: float, never: str) -> Cell:
    if scenario == "raise":
        cause, place = (_first_report(observed, word, fault) for word in (_CAUSE, _PLACE))
        if cause is not None and place is not None:
            return Cell(max(cause, place) - fault)
        known = "error only" if cause is not None else "place only" if place is not None else "none"
        return Cell(None, f"{never}: {known}")
    named, number = _first_report(observed, _SIGNAL, fault), _first_report(observed, _NUMBER, fault)
    if named is None and number is not None:
        return Cell(None, f"never, but -9 after {number - fault:.1f} s")
    return Cell(named - fault if named is not None else None, never if named is None else "")


def _first_report(observed: Observed, word: re.Pattern[str], since: float) -> float | None:
    """Return when a report of the faulty test, or a line of output, first contained `word`."""
    reports = [
        e["time"]
        for e in observed.of("report")
        if e["test"] == "test_2_faulty" and word.search(e["text"])
    ]
    lines = [when for when, line in observed.lines if when > since and word.search(line)]
    return min(reports + lines, default=None)


def _outcome(observed: Observed, test: str) -> str:
    """Describe how a test ended; by rank if ranks report by themselves."""
    seen = {
        e["rank"]: e["outcome"]
        for e in observed.of("report")
        if e["test"] == test and (e["when"] == "call" or e["outcome"] != "passed")
    }
    if not any(e["rank"] is not None for e in observed.of("report")):
        return str(seen.get(None, "does not run"))
    culprit, waits = (seen.get(str(rank), "without result") for rank in (CULPRIT, WAITS))
    return f"{culprit} on rank {CULPRIT}, {waits} on rank {WAITS}"


def _warm(sizes: list[int]) -> None:
    names = [ours.NAME, under_torchrun.NAME, "torchrun, a barrier each"]
    if find_spec("expecttest"):
        names.insert(1, continuous.NAME)
    _title("a warm trivial test, added to a plain one: medians of 200", names)
    for ranks in sizes:
        plain, ranked = trivial_cost(ranks)
        cells = [_added(plain, ranked)]
        peers = [under_torchrun.trivial(ranks), under_torchrun.trivial(ranks, together=True)]
        if find_spec("expecttest"):
            peers.insert(0, continuous.trivial(ranks))
        for peer in peers:
            observed = observe(peer.command, peer.files, peer.environment)
            check(observed)
            medians = observed.medians()
            ranked = medians.get("test_ranked", medians.get("test_ranked_", 0.0))
            cells.append(_added(medians["test_plain"], ranked))
        _row(f"{ranks} ranks", "ms", cells)


def _added(plain: float, ranked: float) -> Cell:
    return Cell(1000 * (ranked - plain))


def _title(text: str, names: list[str]) -> None:
    print(f"\n{text}\n  {'':42}" + "".join(f"{name:<40}" for name in names), flush=True)


def _row(label: str, unit: str, cells: list[Cell]) -> None:
    """Print a row; numbers of other projects also as ratios to ours."""
    mine = cells[0].value
    texts = [cells[0].shown(unit)]
    for cell in cells[1:]:
        ratio = f"  {cell.value / mine:.1f}x" if cell.value is not None and mine else ""
        texts.append(cell.shown(unit) + ratio)
    print(f"  {label:<42}" + "".join(f"{text:<40}" for text in texts), flush=True)


if __name__ == "__main__":
    main()
