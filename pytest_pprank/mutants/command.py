"""The ``mutate`` command: sequence of steps, messages, exit codes.

Exit code 0: every chosen mutant has an outcome, and the baseline is green; survivors do not change
it. 1: the baseline is red, or a mutant could not be run, or the budget was too small. 2: the
command line is wrong. 130: Ctrl-C; the results so far are kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pytest_pprank.bench import results
from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.command import (
    INTERRUPTED,
    add_options,
    jobs_of,
    json_file_of,
    options_of,
)
from pytest_pprank.bench.judgement import Result, misfit
from pytest_pprank.bench.measuring import Measuring
from pytest_pprank.bench.processes import Interruption
from pytest_pprank.bench.runs import Runner
from pytest_pprank.bench.scratch import scratch_folder
from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.launch import keep_owner
from pytest_pprank.launch.keep_folder import KeepError
from pytest_pprank.mutants import table
from pytest_pprank.mutants.as_revert import case_of, dumped, revert_of
from pytest_pprank.mutants.operators import OPERATORS
from pytest_pprank.mutants.outcome import Judged, Outcome, judged
from pytest_pprank.mutants.points import Mutant, mutants_of, of_operators, sample
from pytest_pprank.mutants.select import MODULES, selected
from pytest_pprank.mutants.select import chosen as chosen_of
from pytest_pprank.mutants.sites import probe_of
from pytest_pprank.sglang.static import release

_PROBE = "probe: SGLang as it is, noting which tests come to which mutants"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mutate`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "mutate",
        help="break SGLang in many small ways, one at a time: which breakages do the tests see?",
        description="Break functions of the installed SGLang in the memory of the ranks, one place "
        "at a time, and run the tests that come to this place. Arguments behind -- go to pytest.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "functions", nargs="*", metavar="MODULE[:FUNCTION]",
        help=f"what to break: a module, a class, function or Class.method of it, or a mutant's id "
        f"(default: {len(MODULES)} modules of pipelines, disaggregation and batches)",
    )  # fmt: skip
    add("--sample", type=int, metavar="N", help="only N mutants, drawn by chance (default: all)")
    add("--seed", type=int, default=0, metavar="S", help="for --sample (0)")
    add("--operators", metavar="NAMES", default="", help="only these, with commas between them")
    add("--tests", action="append", default=[], metavar="PATH", help="in place of the stock suite")
    add(
        "--save",
        type=Path,
        metavar="DIR",
        help="also write the mutants as files for --pprank-revert",
    )
    add(
        "--most-tests", type=int, default=30, metavar="N",
        help="run at most N tests for a mutant (30); the likeliest and fastest ones come first",
    )  # fmt: skip
    add("--list", action="store_true", help="print the mutants and run nothing")
    add(
        "--budget", type=float, default=float("inf"), metavar="SECONDS",
        help="begin no further mutant after this time (default: none); a later run goes on",
    )  # fmt: skip
    add_options(parser)
    parser.set_defaults(run=run, parser=parser, takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Run ``mutate``; return the exit code."""
    try:
        release.check_installed()
        chosen, cut = _mutants(args)
        if args.save is not None:
            _write(chosen, args.save)
        if args.list:
            return _list(chosen, cut)
        return _Command(args, chosen).run()
    except UsageError as error:
        print(f"mutate: error: {error}", file=sys.stderr)
        return 2


def _root() -> Path:
    root = release.package_root()
    assert root is not None  # release.check_installed has been called
    return root


def _mutants(args: argparse.Namespace) -> tuple[list[Mutant], list[Mutant]]:
    """Return the chosen mutants, and those that are cut because they are equivalent."""
    if args.sample is not None and args.sample < 1:
        raise UsageError(f"--sample: {args.sample} is not a number of mutants from 1 up")
    if args.most_tests < 1:
        raise UsageError(f"--most-tests: {args.most_tests} is not a number of tests from 1 up")
    if not args.budget > 0:
        raise UsageError(f"--budget: {args.budget} is not a number of seconds above 0")
    operators = [name for name in args.operators.split(",") if name]
    for name in operators:
        if name not in OPERATORS:
            near = did_you_mean(name, OPERATORS)
            allowed = ", ".join(OPERATORS)
            raise UsageError(f"--operators: no operator {name!r}{near}; allowed: {allowed}")
    functions = selected(args.functions, _root())
    named = chosen_of((m for f in functions for m in mutants_of(f)), args.functions)
    found = of_operators(named, operators)
    chosen = sample((m for m in found if not m.cut_by), args.sample, args.seed)
    if not chosen:
        raise UsageError("there is no mutant of these functions and operators")
    return chosen, [mutant for mutant in found if mutant.cut_by]


def _write(chosen: list[Mutant], folder: Path) -> None:
    """Write each mutant as a file for ``--pprank-revert``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for mutant in chosen:
            name = mutant.id.replace(":", "-").removeprefix("sglang.srt.")
            (folder / f"{name}.yaml").write_text(dumped(revert_of(mutant)), "utf-8")
    except OSError as error:
        raise UsageError(f"--save {folder}: {error.strerror}") from None


def _list(chosen: list[Mutant], cut: list[Mutant]) -> int:
    for mutant in chosen:
        print(f"{mutant.id}  line {mutant.line}: {mutant.words}")
    by_rule = {rule: sum(m.cut_by == rule for m in cut) for rule in sorted({m.cut_by for m in cut})}
    why = ", ".join(f"{rule} {number}" for rule, number in by_rule.items())
    print(f"{len(chosen)} mutants; {len(cut)} more are equivalent{f': {why}' if why else ''}")
    return 0


class _Command:
    def __init__(self, args: argparse.Namespace, chosen: list[Mutant]) -> None:
        self._root = _root()
        for path in args.tests:
            if not Path(path.partition("::")[0]).exists():
                raise UsageError(f"--tests: there is no {path}")
        args.more = [*args.tests, *args.more]
        self._options = replace(options_of(args), keep=True)
        self._chosen = chosen
        self._report: Path | None = args.report
        self._json = json_file_of(args, "pprank-mutants.json")
        self._jobs = jobs_of(args)
        self._budget: float = args.budget
        self._most_tests: int = args.most_tests
        key = results.make_key(self._options, self._root)
        self._bench = results.load(self._json, key, fresh=args.fresh)
        self._bench.mutants |= {mutant.id: _described(mutant) for mutant in chosen}
        self._interruption = Interruption()
        self._started = time.monotonic()
        self._done = 0

    def run(self) -> int:
        _say(
            f"{len(self._chosen)} mutants, SGLang {release.sglang_version()}, at most "
            f"{self._most_tests} tests for each; {self._json}"
        )
        with self._interruption, scratch_folder() as folder:
            runner = Runner(self._options, folder, _beat)
            try:
                self._measure(runner, folder)
            except KeyboardInterrupt:
                self._print_results()
                _say(f"interrupted; what was done is kept in {self._json}")
                return INTERRUPTED
            finally:
                with suppress(KeepError):
                    keep_owner.end_all(keep_owner.this_process())
        self._print_results()
        return self._code()

    def _measure(self, runner: Runner, folder: Path) -> None:
        measuring = Measuring(
            self._options, self._bench, runner, self._interruption, self._save, _say
        )
        left = []
        for mutant in self._chosen:
            self._interruption.check()
            case = case_of(mutant, folder, self._root, self._most_tests)
            if self._bench.done(case):
                self._done += 1
            elif case.misfit:
                self._keep(misfit(case))
            else:
                left.append(case)
        self._probe(measuring, left, folder / "probe.yaml")
        measuring.baseline()
        budget = self._budget - (time.monotonic() - self._started)
        measuring.search(left, self._jobs, self._keep, budget)

    def _probe(self, measuring: Measuring, left: list[Case], file: Path) -> None:
        if not left or measuring.knows(left):
            return
        # all chosen ones, so that a later run with another budget needs no probe
        file.write_text(dumped(probe_of(self._chosen)), "utf-8")
        measuring.probe(left, file, _PROBE)

    def _keep(self, result: Result) -> None:
        self._bench.results[result.id] = result
        self._save()
        self._done += 1
        mutant = next(mutant for mutant in self._chosen if mutant.id == result.id)
        _say(f"[{self._done}/{len(self._chosen)}] {table.line(Judged(mutant, result))}")

    def _save(self) -> None:
        self._bench.save(self._json)

    def _judged(self) -> list[Judged]:
        return judged(self._chosen, self._bench.results)

    def _print_results(self) -> None:
        found = self._judged()
        print(*table.tables(found), sep="\n")
        print(table.summary(found, time.monotonic() - self._started), flush=True)
        if self._report is not None:
            from pytest_pprank.mutants.page import page

            self._report.write_text(page(self._bench, found), "utf-8")
            _say(f"report: {self._report}")

    def _code(self) -> int:
        assert self._bench.baseline is not None
        bad = {Outcome.FAILED, Outcome.NOT_RUN} & {each.outcome for each in self._judged()}
        return 0 if self._bench.baseline.green and not bad else 1


def _described(mutant: Mutant) -> dict[str, object]:
    return {
        "module": mutant.module,
        "function": mutant.function.name,
        "operator": mutant.operator,
        "line": mutant.line,
        "words": mutant.words,
        "before": mutant.place.text,
        "after": mutant.text,
    }


def _beat(name: str, done: int, of: int, seconds: float) -> None:
    _say(f"    {name}: {done} of {of} tests, {seconds:.0f} s")


def _say(text: str) -> None:
    print(f"mutate: {text}", flush=True)
