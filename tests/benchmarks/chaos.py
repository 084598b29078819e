"""Runs random ranked tests with random faults; checks their verdicts and what they leave behind.

usage: python tests/benchmarks/chaos.py [--seed N] [--faults N] [--ranks 2,3,4] [--only FAULT,...]

Generates files of ranked tests, healthy ones among faulty ones (see chaos_catalogue), runs pytest
on them, and compares every verdict with the expected one. The seed is printed first: the same seed
gives the same tests. The exit status is 0 only if no verdict was wrong and nothing was left behind.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chaos_case import PREAMBLE, Case, Run
from chaos_catalogue import FAULTS
from chaos_generator import draw_runs
from chaos_judge import Wrong, judge
from chaos_run import Finished, Settings, run_pytest
from processes import adopt_orphans

_PER_RUN = 10
_SHOWN_CHARACTERS = 6_000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--ranks", default="2,3,4", help="sizes of worker groups to draw from")
    parser.add_argument("--only", default="", help="faults to draw from, with commas")
    parser.add_argument("--grace", type=float, default=Settings.grace, metavar="S")
    parser.add_argument("--keep", type=Path, help="folder for the generated tests and outputs")
    parser.add_argument("--list", action="store_true", help="name the faults and leave")
    return parser.parse_args()


def main() -> int:
    """Generate, run, compare and print the results; return the exit status."""
    given = _arguments()
    if given.list:
        print("\n".join(sorted(FAULTS)))
        return 0
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    worlds = [int(word) for word in given.ranks.split(",")]
    only = [word for word in given.only.split(",") if word]
    print(f"chaos: --seed {seed} --faults {given.faults} --ranks {given.ranks}", flush=True)
    adopt_orphans()
    begin = time.monotonic()
    runs = draw_runs(seed, given.faults, worlds, _PER_RUN, only)
    settings = Settings(grace=given.grace)
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = given.keep or Path(scratch)
        wrong, leftovers = _run_all(folder, runs, settings)
    tests = sum(len(run.cases) for run in runs)
    print(
        f"chaos: seed {seed}: {given.faults} faults among {tests} tests in {len(runs)} runs, "
        f"{wrong} wrong verdicts, {leftovers} leftovers, {time.monotonic() - begin:.0f} s"
    )
    return 1 if wrong or leftovers else 0


def _run_all(folder: Path, runs: Sequence[Run], settings: Settings) -> tuple[int, int]:
    wrong = leftovers = 0
    for run in runs:
        finished = _run_in(folder / f"run{run.number:02d}", run, settings)
        mistakes = [
            mistake
            for _, case in run.cases
            if (mistake := judge(case, finished.reports.get(case.name, [])))
        ]
        wrong += len(mistakes) + finished.timed_out
        leftovers += len(finished.leftovers)
        _tell(run, finished, mistakes)
        for number, mistake in enumerate(mistakes):
            alone = folder / f"run{run.number:02d}-wrong{number}"
            _tell_wrong(run, settings, mistake, alone)
    return wrong, leftovers


def _run_in(folder: Path, run: Run, settings: Settings) -> Finished:
    folder.mkdir(parents=True)
    return run_pytest(folder, run, settings)


def _tell(run: Run, finished: Finished, mistakes: list[Wrong]) -> None:
    faults = ", ".join(case.fault for _, case in run.cases if case.fault)
    print(
        f"run {run.number}: {run.world} ranks, {len(run.cases)} tests, {finished.seconds:.0f} s, "
        f"{len(mistakes)} wrong, {len(finished.leftovers)} left: {faults}",
        flush=True,
    )
    for leftover in finished.leftovers:
        print(f"  LEFT BEHIND by run {run.number}: {leftover}")
    missing = any(case.name not in finished.reports for _, case in run.cases)
    if finished.timed_out or missing:
        how = "was killed at its deadline" if finished.timed_out else "lacks tests"
        print(f"  run {run.number} {how}; the end of its output:")
        print(_indented(finished.output[-_SHOWN_CHARACTERS:]))


def _tell_wrong(run: Run, settings: Settings, mistake: Wrong, folder: Path) -> None:
    case = mistake.case
    print(f"  WRONG: {case.name} ({case.fault or 'healthy'}): {'; '.join(mistake.complaints)}")
    print(f"    expected: {case.expected}")
    print(_indented(_cut(mistake.text) or "(no report)"))
    # a test that checks the remains of a fault makes no sense without the fault
    cases = [fault for _, fault in run.cases if fault.after is case] + [case]
    alone = _again(run.world, settings, cases, folder)
    print(f"    run alone it is {'WRONG AS WELL' if alone else 'right'}; test_it.py:")
    print(_indented("\n\n".join([PREAMBLE, *(case.source for case in cases)]), 6))
    print(f"    python -m pytest {' '.join(settings.flags(run.world))} test_it.py", flush=True)


def _again(world: int, settings: Settings, cases: list[Case], folder: Path) -> bool:
    """Return whether the last test's verdict is also wrong without the other tests around it."""
    run = Run(0, world, {"test_it.py": cases})
    finished = _run_in(folder, run, settings)
    return judge(cases[-1], finished.reports.get(cases[-1].name, [])) is not None


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"


def _indented(text: str, by: int = 4) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return "\n".join(" " * by + line for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
