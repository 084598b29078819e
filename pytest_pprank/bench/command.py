"""The ``regressions`` command: sequence of steps, messages, exit codes.

Exit code 0: the baseline is green and every revert that applies is caught. 1: the baseline is red,
or a bug is missed, or a revert could not be measured, or none applies. 2: the command line or a
file is wrong. 130: Ctrl-C; the results so far are kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from pytest_pprank.bench import results, table
from pytest_pprank.bench.cases import load_cases
from pytest_pprank.bench.judgement import Result, Status, misfit
from pytest_pprank.bench.measuring import Measuring
from pytest_pprank.bench.order import write_probe
from pytest_pprank.bench.processes import Interruption
from pytest_pprank.bench.runs import WHOLE_SUITE, Options, Runner
from pytest_pprank.bench.scratch import scratch_folder
from pytest_pprank.devices import choose_device
from pytest_pprank.errors import UsageError
from pytest_pprank.options import DEVICES, parse_sizes
from pytest_pprank.sglang.static import release

_PROBE_FROM = 4
"""Number of reverts from which on it pays to determine first which tests reach them."""
_PROBE = "probe: SGLang as it is, noting which tests get to the reverted functions"
INTERRUPTED = 130


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``regressions`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "regressions",
        help="take historical fixes out of SGLang, one by one: does the stock suite see each bug?",
        description="Run the stock suite on SGLang as it is, then with each revert, and say which "
        "of these bugs it sees. Arguments behind -- go to pytest; tests named there (paths, "
        "also relative ones, or modules) are run in place of the stock suite.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("reverts", nargs="+", metavar="DIR|FILE|NAME", help="folder of revert files, file, or name")
    add_options(parser)
    parser.set_defaults(run=run, parser=parser, takes_more=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how tests are run and where results go."""
    add = parser.add_argument
    add("--pp-size", default="2", metavar="N[,M]", help="pipeline stages (default: 2)")
    add(
        "--device",
        default="",
        choices=DEVICES,
        help="device of the ranks (default: "
        "cuda where there are GPUs, else cpu, and sim for what cpu cannot show)",
    )
    add("--jobs", type=int, metavar="N", help="runs at a time (default: cores / pipeline stages)")
    add("--all-tests", action="store_true", help="do not stop a run at the first red test")
    add(
        "--deadline", type=float, default=300.0, metavar="S",
        help=f"seconds a run may take (300); {WHOLE_SUITE} times that for one of the whole suite",
    )  # fmt: skip
    add(
        "--test-timeout", type=float, default=30.0, metavar="S",
        help="seconds a test may take, as --pprank-timeout (30)",
    )  # fmt: skip
    add("--report", type=Path, metavar="FILE.html", help="write a page to look at")
    add(
        "--json", type=Path, metavar="FILE",
        help="results, to go on from (default: beside the report, else pprank-COMMAND.json)",
    )  # fmt: skip
    add("--fresh", action="store_true", help="measure everything again")


def run(args: argparse.Namespace) -> int:
    """Run ``regressions``; return the exit code."""
    try:
        return _Command(args).run()
    except UsageError as error:
        print(f"regressions: error: {error}", file=sys.stderr)
        return 2


class _Command:
    def __init__(self, args: argparse.Namespace) -> None:
        release.check_installed()
        root = release.package_root()
        assert root is not None  # check_installed has just checked
        self._options = options_of(args)
        self._cases = load_cases(args.reverts, root)
        self._report: Path | None = args.report
        self._json = json_file_of(args, "pprank-regressions.json")
        self._jobs = jobs_of(args)
        key = results.make_key(self._options, root)
        self._bench = results.load(self._json, key, fresh=args.fresh)
        self._interruption = Interruption()
        self._started = time.monotonic()

    def run(self) -> int:
        _say(f"{len(self._cases)} reverts, SGLang {release.sglang_version()}; {self._json}")
        with self._interruption, scratch_folder() as folder:
            runner = Runner(self._options, folder, _beat)
            try:
                self._measure(runner, folder)
            except KeyboardInterrupt:
                self._print_results()
                _say(f"interrupted; what was done is kept in {self._json}")
                return INTERRUPTED
        self._print_results()
        return self._code()

    def _measure(self, runner: Runner, folder: Path) -> None:
        measuring = Measuring(
            self._options, self._bench, runner, self._interruption, self._save, _say
        )
        left = [case for case in self._cases if not case.misfit and not self._bench.done(case)]
        if len(left) >= _PROBE_FROM and not measuring.knows(left):
            file = folder / "probe.yaml"
            write_probe(left, file)
            measuring.probe(left, file, _PROBE)
        measuring.baseline()
        for case in self._cases:
            if case.misfit and not self._bench.done(case):
                self._keep(misfit(case))
        measuring.search(left, self._jobs, self._keep)

    def _keep(self, result: Result) -> None:
        self._bench.results[result.id] = result
        self._save()
        done = sum(self._bench.done(case) for case in self._cases)
        _say(f"[{done}/{len(self._cases)}] {'  '.join(filter(None, table.row(result)))}")

    def _save(self) -> None:
        self._bench.save(self._json)

    def _results(self) -> list[Result]:
        known = self._bench.results
        return [known[c.id] for c in self._cases if c.id in known]

    def _print_results(self) -> None:
        found = self._results()
        print(*table.table(found), sep="\n")
        if self._bench.baseline is not None:
            print(table.baseline_line(self._bench.baseline))
        print(table.summary(found, time.monotonic() - self._started), flush=True)
        if self._report is not None:
            from pytest_pprank.bench.page import page

            self._report.write_text(page(self._bench, found), "utf-8")
            _say(f"report: {self._report}")

    def _code(self) -> int:
        found = [result.status for result in self._results()]
        assert self._bench.baseline is not None
        good = all(status in (Status.CAUGHT, Status.MISFIT) for status in found)
        return 0 if self._bench.baseline.green and good and Status.CAUGHT in found else 1


def options_of(args: argparse.Namespace) -> Options:
    """Return how to run the tests, from the options of the command line; raises UsageError."""
    stages = max(parse_sizes(args.pp_size, "--pp-size"))
    for name in ("deadline", "test_timeout"):
        if not 0 < getattr(args, name) < float("inf"):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: {getattr(args, name)} is not a number of seconds above 0")
    any_device = args.device in ("", "auto")
    return Options(
        sizes=args.pp_size,
        # without a GPU: device cpu shows most bugs and is faster than sim
        device=choose_device("auto", stages) if any_device else args.device,
        any_device=any_device,
        all_tests=args.all_tests,
        deadline=args.deadline,
        test_timeout=args.test_timeout,
        arguments=tuple(args.more),
    )


def jobs_of(args: argparse.Namespace) -> int:
    """Return how many runs there are at a time; raises UsageError."""
    if args.jobs is None:
        stages = max(parse_sizes(args.pp_size, "--pp-size"))
        return max(1, len(os.sched_getaffinity(0)) // stages)
    if args.jobs < 1:
        raise UsageError(f"--jobs: {args.jobs} is not a number of runs from 1 up")
    return int(args.jobs)


def json_file_of(args: argparse.Namespace, default: str) -> Path:
    """Return the file of the results; raises UsageError if a folder does not exist."""
    given: Path | None = args.json
    if given is None:
        given = args.report.with_suffix(".json") if args.report else Path(default)
    for file in filter(None, (given, args.report)):
        if not file.parent.is_dir():
            raise UsageError(f"{file}: the folder {file.parent} does not exist")
    return given


def _beat(name: str, done: int, of: int, seconds: float) -> None:
    _say(f"    {name}: {done} of {of} tests, {seconds:.0f} s")


def _say(text: str) -> None:
    print(f"regressions: {text}", flush=True)
