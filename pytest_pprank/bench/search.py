"""Searches for the bug of one revert: on which devices to run, and what counts as detected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.judgement import NOT_REACHED, Result, Status, judge, missed
from pytest_pprank.bench.order import Reach
from pytest_pprank.bench.results import Bench
from pytest_pprank.bench.runs import Options, Run, Runner

_SIM = "sim"
_ATTEMPTS = 3
"""How many tests may prove unreliable: red without the revert, too, or not red again with it."""
_STALLS = ("EngineStalled", "hung")
"""Failures that a busy machine may cause by itself: such a test must be red twice."""


class CutOff(Exception):
    """A run was ended by Ctrl-C before it had a result."""


class BugSearch:
    """Searches for bugs in a bench that has its baseline; several threads may call `search`."""

    def __init__(self, runner: Runner, options: Options, bench: Bench) -> None:
        assert bench.baseline is not None
        self._runner = runner
        self._options = options
        self._bench = bench
        self._red = frozenset(bench.baseline.red)
        self._reach = bench.reach or Reach()

    def search(self, case: Case) -> Result:
        """Return the outcome of a revert; raises CutOff if the runs are being ended."""
        if self._reach.knows(case) and not self._reach.first(case):
            return missed(case, NOT_REACHED)
        if not (self._options.any_device and self._options.device == "cpu"):
            return self._on_own_device(case)
        if case.device_order:  # device cpu cannot show such a bug
            return self._on_each(case, (self._on_sim, self._on_own_device), _is_not_caught)
        return self._on_each(case, (self._on_own_device, self._on_sim), _needs_sim)

    def _on_each(
        self,
        case: Case,
        ways: Sequence[Callable[[Case], Result]],
        goes_on: Callable[[Result], bool],
    ) -> Result:
        results: list[Result] = []
        for way in ways:
            results.append(way(case))
            if not goes_on(results[-1]):
                break
        return _of_all(results)

    def _on_own_device(self, case: Case) -> Result:
        seconds = 0.0
        red = set(self._red)
        for _ in range(_ATTEMPTS):
            run = self._run(case, red)
            seconds += run.seconds
            result = replace(judge(case, run, self._red), seconds=seconds)
            if result.status is not Status.CAUGHT:
                return result
            again, more = self._is_red_again(case, result, run)
            seconds += more
            if again:
                return replace(result, seconds=seconds)
            red.add(result.test)
        return self._not_for_sure(case, seconds)

    def _on_sim(self, case: Case) -> Result:
        """Run on device sim, where host and device tensors differ and order matters.

        There is no baseline on that device: a test that fails must pass without the revert.
        """
        seconds = 0.0
        red = set(self._red)
        for _ in range(_ATTEMPTS):
            run = self._run(case, red, _SIM)
            seconds += run.seconds
            result = replace(judge(case, run, frozenset()), seconds=seconds, device=_SIM)
            if result.status is not Status.CAUGHT:
                return result
            again, more = self._is_red_again(case, result, run, _SIM)
            seconds += more
            if again:
                green, more = self._is_green_on_sim(result.test, {*run.topologies, *red})
                seconds += more
                if green:
                    return replace(result, seconds=seconds)
            red.add(result.test)
        return replace(self._not_for_sure(case, seconds), device=_SIM)

    def _not_for_sure(self, case: Case, seconds: float) -> Result:
        reason = f"{_ATTEMPTS} tests went red that do so without it, too, or not again with it"
        return replace(missed(case, reason), seconds=seconds, reached=True)

    def _is_red_again(
        self, case: Case, result: Result, run: Run, device: str = ""
    ) -> tuple[bool, float]:
        """Run the failing test once more with the revert if it stalled; also return the seconds."""
        if not result.seen_by.startswith(_STALLS):
            return True, 0.0
        skip = {*run.topologies, *self._red, *self._reach.topologies} - {result.test}
        again = self._runner.run(f"{case.id}, again", case.spec, skip=skip, device=device)
        if again.reds:  # counts even if that run was then ended
            return True, again.seconds
        self._check_not_stopped()
        return False, again.seconds

    def _is_green_on_sim(self, test: str, known: Iterable[str]) -> tuple[bool, float]:
        """Run one of the `known` tests on the unmodified SGLang, once per bench.

        Also returns the seconds.
        """
        if test in self._bench.green_on_sim:
            return True, 0.0
        skip = {*known, *self._reach.topologies} - {test}
        run = self._runner.run(f"{test}, sim", skip=skip, to_end=True, device=_SIM)
        self._check_not_stopped()
        green = run.status == 0 and test in run.passed
        if green:
            self._bench.green_on_sim.add(test)
        return green, run.seconds

    def _run(self, case: Case, skip: Iterable[str], device: str = "") -> Run:
        seen = self._bench.seen_before.get(case.id)
        first = self._reach.first(case, [seen] if seen else [])
        needless = set() if self._options.all_tests else self._reach.untouched(case)
        name = f"{case.id}, {device}" if device else case.id
        self._check_not_stopped()
        run = self._runner.run(name, case.spec, first=first, skip={*skip, *needless}, device=device)
        if device or not run.reds:  # a failure on the bench's own device counts in any case
            self._check_not_stopped()
        return run

    def _check_not_stopped(self) -> None:
        if self._runner.is_stopped():
            raise CutOff


def _is_not_caught(result: Result) -> bool:
    return result.status is not Status.CAUGHT


def _needs_sim(result: Result) -> bool:
    return result.status is Status.MISSED and result.reached


def _of_all(results: Sequence[Result]) -> Result:
    """Combine the results of several devices: the last one if caught, else the most severe one.

    The seconds are added up.
    """
    *before, last = results
    if not before:
        return replace(last, seconds=round(last.seconds, 1))
    seconds = round(sum(result.seconds for result in results), 1)
    if last.status is Status.CAUGHT:
        return replace(last, seconds=seconds)
    found = next((result for result in results if result.status is not Status.MISSED), last)
    reasons = (f"{_on(result)}{result.reason}" for result in results)
    return replace(found, seconds=seconds, reason="; ".join(reasons))


def _on(result: Result) -> str:
    return f"on device {result.device}: " if result.device else ""
