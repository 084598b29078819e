"""The ``regressions`` command: order of events, words for the user, exit codes.

Exit code 0: the baseline is green and every revert that applies is caught. 1: the baseline is red,
or a bug is missed, or a revert could not be measured, or none applies. 2: the command line or a
file is at fault. 130: Ctrl-C; what was done is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pytest_pprank.devices import choose_device
from pytest_pprank.errors import UsageError
from pytest_pprank.options import DEVICES, parse_sizes
from pytest_pprank.regressions import results, table
from pytest_pprank.regressions.cases import Case, load_cases
from pytest_pprank.regressions.judgement import (
    NOT_REACHED,
    Result,
    Status,
    judge,
    judge_baseline,
    misfit,
    missed,
)
from pytest_pprank.regressions.order import Reach, reach_of, write_probe
from pytest_pprank.regressions.processes import Interruption
from pytest_pprank.regressions.results import Bench
from pytest_pprank.regressions.runs import Options, Run, Runner
from pytest_pprank.sglang import static

_PROBE_FROM = 4
"""So many reverts that it pays to look first which tests get to them (one more run)."""
_POLL_S = 0.5
"""How often we look whether we are asked to end."""
_SIM_ATTEMPTS = 3
"""How many tests may turn out to be red on device sim without the revert, too."""
INTERRUPTED = 130


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``regressions`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "regressions",
        help="take historical fixes out of SGLang, one by one: does the stock suite see each bug?",
        description="Run the stock suite on SGLang as it is, then with each revert, and say which "
        "of these bugs it sees. Arguments behind -- go to pytest.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("reverts", nargs="+", metavar="DIR|FILE|NAME", help="folder of revert files, file, or name")
    add("--pp-size", default="2", metavar="N[,M]", help="pipeline stages (default: 2)")
    add("--device", default="", choices=DEVICES, help="device of the ranks, as --pprank-device")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: cores / pipeline stages)")
    add("--all-tests", action="store_true", help="do not stop a run at the first red test")
    add("--deadline", type=float, default=300.0, metavar="S", help="seconds a run may take (300)")
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
    """Carry out ``regressions``; return the exit code."""
    try:
        return _Command(args).run()
    except UsageError as error:
        print(f"regressions: error: {error}", file=sys.stderr)
        return 2


class _Command:
    def __init__(self, args: argparse.Namespace) -> None:
        static.check_installed()
        root = static.package_root()
        assert root is not None  # check_installed has just looked
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
        _say(f"{len(self._cases)} reverts, SGLang {static.sglang_version()}; {self._json}")
        with (
            self._interruption,
            tempfile.TemporaryDirectory(prefix="pprank-regressions-") as folder,
        ):
            runner = Runner(self._options, Path(folder), _beat)
            try:
                self._measure(runner)
            except KeyboardInterrupt:
                self._tell()
                _say(f"interrupted; what was done is kept in {self._json}")
                return INTERRUPTED
        self._tell()
        return self._code()

    def _measure(self, runner: Runner) -> None:
        bench = self._bench
        if bench.baseline is None:
            _say("baseline: SGLang as it is")
            bench.baseline = judge_baseline(self._one(runner, "baseline"))
            _refuse_unusable(bench)
            self._save()
        _say(table.baseline_line(bench.baseline))
        left = [case for case in self._cases if not bench.done(case)]
        for case in [case for case in left if case.misfit]:
            self._keep(misfit(case))
        left = [case for case in left if not case.misfit]
        reach = bench.reach or Reach()
        if len(left) >= _PROBE_FROM and not all(map(reach.knows, left)):
            self._probe(runner, left)
        self._all(runner, left)

    def _probe(self, runner: Runner, left: list[Case]) -> None:
        """Look which tests get to the functions in question, to begin with these."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "probe.yaml"
            write_probe(left, file)
            _say("probe: which tests get to the reverted functions?")
            found = self._one(runner, "probe", str(file))
        if found.status not in (0, 1) or set(found.seconds_of) != set(found.topologies):
            _say("the probe did not come to its end; the tests keep their order")
            return
        known, new = self._bench.reach or Reach(), reach_of(found)
        asked = {target: () for case in left for target in case.present}
        tests_of = {**known.tests_of, **asked, **new.tests_of}
        self._bench.reach = replace(new, tests_of=tests_of)
        self._save()

    def _one(self, runner: Runner, name: str, revert: str | None = None) -> Run:
        with ThreadPoolExecutor(1) as pool:
            with _stopping(runner):
                future = pool.submit(runner.run, name, revert, to_end=True)
                while not wait([future], _POLL_S).done:
                    self._interruption.check()
            return future.result()

    def _all(self, runner: Runner, left: list[Case]) -> None:
        with ThreadPoolExecutor(self._jobs) as pool:
            pending: set[Future[Result]] = set()
            try:
                with _stopping(runner):
                    pending.update(pool.submit(self._case, runner, case) for case in left)
                    while pending:
                        done = wait(pending, _POLL_S, FIRST_COMPLETED).done
                        for future in done:
                            self._keep(future.result())
                        pending -= done
                        self._interruption.check()
            except KeyboardInterrupt:
                for future in wait(pending).done:
                    if not isinstance(future.exception(), _CutOff):
                        self._keep(future.result())
                raise

    def _case(self, runner: Runner, case: Case) -> Result:
        assert self._bench.baseline is not None
        red = frozenset(self._bench.baseline.red)
        reach = self._bench.reach or Reach()
        if reach.knows(case) and not reach.first(case):
            return missed(case, NOT_REACHED)
        seen = self._bench.seen_before.get(case.id)
        first = reach.first(case, [seen] if seen else [])
        needless = set() if self._options.all_tests else reach.untouched(case)
        if runner.is_stopped():
            raise _CutOff
        run = runner.run(case.id, case.spec, first=first, skip=red | needless)
        if runner.is_stopped() and not run.reds:
            raise _CutOff
        result = judge(case, run, red)
        if result.status is Status.MISSED and run.reached and self._may_need_sim():
            return self._on_sim(runner, case, result, first, red | needless)
        return result

    def _may_need_sim(self) -> bool:
        """Whether the runs are on device cpu, and only because nobody has said otherwise."""
        stages = max(parse_sizes(self._options.sizes, "--pp-size"))
        return not self._options.device and choose_device("auto", stages) == "cpu"

    def _on_sim(
        self, runner: Runner, case: Case, before: Result, first: list[str], skip: Iterable[str]
    ) -> Result:
        """Look for a bug once more, where a host tensor is not a device tensor and order counts.

        There is no baseline of that device: a test that goes red must be green without the revert.
        """
        skip = {*skip, *before.others}
        seconds = before.seconds
        for _ in range(_SIM_ATTEMPTS):
            run = runner.run(f"{case.id}, sim", case.spec, first=first, skip=skip, device="sim")
            seconds += run.seconds
            result = replace(judge(case, run, frozenset()), seconds=round(seconds, 1), device="sim")
            if runner.is_stopped():
                raise _CutOff
            if result.status is not Status.CAUGHT:
                return result
            others = set(run.topologies) - {result.test} | skip
            clean = runner.run(f"{result.test}, sim", skip=others, to_end=True, device="sim")
            if clean.status == 0 and result.test in clean.passed:
                return result
            skip = {*skip, result.test}
        reason = f"{before.reason}; on device sim {_SIM_ATTEMPTS} tests are red without it, too"
        return replace(before, seconds=round(seconds, 1), reason=reason)

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

    def _tell(self) -> None:
        found = self._results()
        print(*table.table(found), sep="\n")
        if self._bench.baseline is not None:
            print(table.baseline_line(self._bench.baseline))
        print(table.summary(found, time.monotonic() - self._started), flush=True)
        if self._report is not None:
            from pytest_pprank.regressions.page import page

            self._report.write_text(page(self._bench, found), "utf-8")
            _say(f"report: {self._report}")

    def _code(self) -> int:
        found = [result.status for result in self._results()]
        assert self._bench.baseline is not None
        good = all(status in (Status.CAUGHT, Status.MISFIT) for status in found)
        return 0 if self._bench.baseline.green and good and Status.CAUGHT in found else 1


class _CutOff(Exception):
    """A run that Ctrl-C has ended before it could say anything."""


@contextmanager
def _stopping(runner: Runner) -> Iterator[None]:
    """On Ctrl-C, let all runs come to their end in good order."""
    try:
        yield
    except KeyboardInterrupt:
        _say("interrupted: the runs are being ended")
        runner.stop()
        raise


def _refuse_unusable(bench: Bench) -> None:
    """Raise UsageError when not one test of the unmodified SGLang has run."""
    baseline = bench.baseline
    if baseline is not None and not baseline.tests:
        raise UsageError(f"the suite does not run on SGLang as it is: {baseline.reason}")


def _options(args: argparse.Namespace) -> Options:
    parse_sizes(args.pp_size, "--pp-size")
    for name in ("deadline", "test_timeout"):
        if not 0 < getattr(args, name) < float("inf"):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: {getattr(args, name)} is not a number of seconds above 0")
    return Options(
        sizes=args.pp_size,
        device=args.device,
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
