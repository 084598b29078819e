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
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pytest_pprank.bench import results, table
from pytest_pprank.bench.cases import Case, load_cases
from pytest_pprank.bench.judgement import Result, Status, judge_baseline, misfit
from pytest_pprank.bench.order import Reach, reach_of, write_probe
from pytest_pprank.bench.processes import Interruption
from pytest_pprank.bench.results import Bench
from pytest_pprank.bench.runs import WHOLE_SUITE, Options, Run, Runner
from pytest_pprank.bench.scratch import scratch_folder
from pytest_pprank.bench.search import BugSearch, CutOff
from pytest_pprank.devices import choose_device
from pytest_pprank.errors import UsageError
from pytest_pprank.options import DEVICES, parse_sizes
from pytest_pprank.sglang.static import release

_PROBE_FROM = 4
"""Number of reverts from which on it pays to determine first which tests reach them."""
_POLL_S = 0.5
"""How often to check whether the user has asked to stop, in seconds."""
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
        help="results, to go on from (default: beside the report, else pprank-regressions.json)",
    )  # fmt: skip
    add("--fresh", action="store_true", help="measure everything again")
    parser.set_defaults(run=run, parser=parser, takes_more=True)


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
        self._options = _options(args)
        self._cases = load_cases(args.reverts, root)
        self._report: Path | None = args.report
        self._json = _json_file(args)
        self._jobs = _jobs(args)
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
        bench = self._bench
        left = [case for case in self._cases if not case.misfit and not bench.done(case)]
        probing = len(left) >= _PROBE_FROM and not all(map((bench.reach or Reach()).knows, left))
        if probing:
            self._probe(runner, left, folder / "probe.yaml")
        if bench.baseline is None:
            _say("baseline: SGLang as it is")
            bench.baseline = judge_baseline(self._one(runner, "baseline"))
            _refuse_unusable(bench)
            self._save()
        _say(table.baseline_line(bench.baseline))
        for case in self._cases:
            if case.misfit and not bench.done(case):
                self._keep(misfit(case))
        self._all(BugSearch(runner, self._options, bench), runner, left)

    def _probe(self, runner: Runner, left: list[Case], file: Path) -> None:
        """Determine which tests reach the functions in question, to run these first.

        A probe changes nothing in SGLang: if it is green, the run is the baseline, too.
        """
        bench = self._bench
        write_probe(left, file)
        _say(f"{_PROBE}{'' if bench.baseline else '; if green, it is the baseline, too'}")
        name = "probe" if bench.baseline else "baseline with probe"
        found = self._one(runner, name, str(file))
        whole = found.status in (0, 1) and set(found.seconds_of) == set(found.topologies)
        if whole:
            bench.reach = _with(bench.reach or Reach(), reach_of(found), left)
        else:
            _say("the probe did not come to its end; the tests keep their order")
        if bench.baseline is None:
            baseline = replace(judge_baseline(found), probed=True)
            if whole and baseline.green:
                bench.baseline = baseline
            else:
                _say(f"{table.baseline_line(baseline)}; once more without it")
        self._save()

    def _one(self, runner: Runner, name: str, revert: str | None = None) -> Run:
        with ThreadPoolExecutor(1) as pool:
            with _stopping(runner):
                future = pool.submit(runner.run, name, revert, to_end=True)
                while not wait([future], _POLL_S).done:
                    self._interruption.check()
            return future.result()

    def _all(self, search: BugSearch, runner: Runner, left: list[Case]) -> None:
        with ThreadPoolExecutor(self._jobs) as pool:
            pending: set[Future[Result]] = set()
            try:
                with _stopping(runner):
                    pending.update(pool.submit(search.search, case) for case in left)
                    while pending:
                        done = wait(pending, _POLL_S, FIRST_COMPLETED).done
                        for future in done:
                            self._keep(future.result())
                        pending -= done
                        self._interruption.check()
            except KeyboardInterrupt:
                for future in wait(pending).done:
                    if not isinstance(future.exception(), CutOff):
                        self._keep(future.result())
                raise

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


def _with(known: Reach, new: Reach, asked: Iterable[Case]) -> Reach:
    """Merge the findings of a probe, including functions in `asked` that no test reaches."""
    nowhere: dict[str, tuple[str, ...]] = {t: () for case in asked for t in case.present}
    return replace(new, tests_of={**known.tests_of, **nowhere, **new.tests_of})


@contextmanager
def _stopping(runner: Runner) -> Iterator[None]:
    """On Ctrl-C, let all runs end in good order."""
    try:
        yield
    except KeyboardInterrupt:
        _say("interrupted: the runs are being ended")
        runner.stop()
        raise


def _refuse_unusable(bench: Bench) -> None:
    """Raise UsageError if not a single test has run on the unmodified SGLang."""
    baseline = bench.baseline
    if baseline is not None and not baseline.tests:
        raise UsageError(f"the suite does not run on SGLang as it is: {baseline.reason}")


def _options(args: argparse.Namespace) -> Options:
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


def _jobs(args: argparse.Namespace) -> int:
    if args.jobs is None:
        stages = max(parse_sizes(args.pp_size, "--pp-size"))
        return max(1, len(os.sched_getaffinity(0)) // stages)
    if args.jobs < 1:
        raise UsageError(f"--jobs: {args.jobs} is not a number of runs from 1 up")
    return int(args.jobs)


def _json_file(args: argparse.Namespace) -> Path:
    given: Path | None = args.json
    if given is None:
        given = args.report.with_suffix(".json") if args.report else Path("pprank-regressions.json")
    for file in filter(None, (given, args.report)):
        if not file.parent.is_dir():
            raise UsageError(f"{file}: the folder {file.parent} does not exist")
    return given


def _beat(name: str, done: int, of: int, seconds: float) -> None:
    _say(f"    {name}: {done} of {of} tests, {seconds:.0f} s")


def _say(text: str) -> None:
    print(f"regressions: {text}", flush=True)
