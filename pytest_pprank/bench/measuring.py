"""The steps of a bench: which tests come to what is edited, the baseline, all searches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_pprank.bench import table
from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.judgement import Result, judge_baseline
from pytest_pprank.bench.order import Reach, reach_of
from pytest_pprank.bench.processes import Interruption
from pytest_pprank.bench.results import Bench
from pytest_pprank.bench.runs import Options, Run, Runner
from pytest_pprank.bench.search import BugSearch, CutOff
from pytest_pprank.errors import UsageError

_POLL_S = 0.5
"""How often to check whether the user has asked to stop, in seconds."""


@dataclass(frozen=True)
class Measuring:
    """Fills a bench; `save` writes it to its file, `say` prints a line.

    Each step raises KeyboardInterrupt if a signal has asked to stop, after all runs have ended.
    """

    options: Options
    bench: Bench
    runner: Runner
    interruption: Interruption
    save: Callable[[], None]
    say: Callable[[str], None]

    def knows(self, cases: Iterable[Case]) -> bool:
        """Return whether it has been determined which tests come to these cases."""
        return all(map((self.bench.reach or Reach()).knows, cases))

    def probe(self, cases: Sequence[Case], file: Path, words: str) -> None:
        """Determine with the revert in `file`, which changes nothing, which tests come to `cases`.

        If this run is green, it is the baseline, too.
        """
        bench = self.bench
        self.say(f"{words}{'' if bench.baseline else '; if green, it is the baseline, too'}")
        name = "probe" if bench.baseline else "baseline with probe"
        found = self._one(name, str(file))
        whole = found.status in (0, 1) and set(found.seconds_of) == set(found.topologies)
        if whole:
            bench.reach = _with(bench.reach or Reach(), reach_of(found), cases)
        else:
            self.say("the probe did not come to its end; the tests keep their order")
        if bench.baseline is None:
            baseline = replace(judge_baseline(found), probed=True)
            if whole and baseline.green:
                bench.baseline = baseline
            else:
                self.say(f"{table.baseline_line(baseline)}; once more without it")
        self.save()

    def baseline(self) -> None:
        """Run the tests on SGLang as it is, if the probe did not do; raises UsageError."""
        bench = self.bench
        if bench.baseline is None:
            self.say("baseline: SGLang as it is")
            bench.baseline = judge_baseline(self._one("baseline"))
            _refuse_unusable(bench)
            self.save()
        self.say(table.baseline_line(bench.baseline))

    def search(
        self,
        cases: Sequence[Case],
        jobs: int,
        keep: Callable[[Result], None],
        budget: float = float("inf"),
    ) -> None:
        """Search for the bug of each case, `jobs` at a time, and `keep` each result.

        After `budget` seconds no further search begins.
        """
        search = BugSearch(self.runner, self.options, self.bench)
        ends = time.monotonic() + budget
        with ThreadPoolExecutor(jobs) as pool:
            pending: set[Future[Result]] = set()
            try:
                with _stopping(self.runner, self.say):
                    pending.update(pool.submit(search.search, case) for case in cases)
                    while pending:
                        done = wait(pending, _POLL_S, FIRST_COMPLETED).done
                        for future in done:
                            keep(future.result())
                        pending -= done
                        self.interruption.check()
                        if time.monotonic() > ends:
                            pending = {future for future in pending if not future.cancel()}
            except KeyboardInterrupt:
                for future in wait(pending).done:
                    if not isinstance(future.exception(), CutOff):
                        keep(future.result())
                raise

    def _one(self, name: str, revert: str | None = None) -> Run:
        with ThreadPoolExecutor(1) as pool:
            with _stopping(self.runner, self.say):
                future = pool.submit(self.runner.run, name, revert, to_end=True)
                while not wait([future], _POLL_S).done:
                    self.interruption.check()
            return future.result()


def _with(known: Reach, new: Reach, asked: Iterable[Case]) -> Reach:
    """Merge the findings of a probe, including what in `asked` no test comes to."""
    nowhere: dict[str, tuple[str, ...]] = {t: () for case in asked for t in case.present}
    return replace(
        new,
        tests_of={**known.tests_of, **nowhere, **new.tests_of},
        in_setup={**known.in_setup, **new.in_setup},
    )


@contextmanager
def _stopping(runner: Runner, say: Callable[[str], None]) -> Iterator[None]:
    """On Ctrl-C, let all runs end in good order."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted: the runs are being ended")
        runner.stop()
        raise


def _refuse_unusable(bench: Bench) -> None:
    """Raise UsageError if not a single test has run on the unmodified SGLang."""
    baseline = bench.baseline
    if baseline is not None and not baseline.tests:
        raise UsageError(f"the suite does not run on SGLang as it is: {baseline.reason}")
