"""Evaluates whether the suite detected a bug, from the runs without and with its revert."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.runs import Red, Run

# pytest's exit codes
_NO_TESTS = 5
_USAGE = 4
_MAX_TEXT = 8_000
_REQUEST = re.compile(r"\breq-\d+\b")
_NOT_RUN = ("worker group could not start", "collection failed on a rank")
"""Verdicts on a worker group in which no test has run."""


NOT_REACHED = "no test gets to the reverted code"


class Status(str, Enum):
    """The outcome of one revert."""

    CAUGHT = "caught"
    MISSED = "missed"
    HUNG = "hung"
    MISFIT = "does not apply"
    FAILED = "could not run"


@dataclass(frozen=True)
class Result:
    """The outcome of one revert, and the first failure that showed it.

    `reached`: some test called the reverted code. `others`: further tests that failed.
    `names_function`, `names_request`: whether the failure names a reverted function, or the id of a
    request. `reason`: in words, for every outcome except CAUGHT.
    """

    id: str
    digest: str
    title: str
    status: Status
    seconds: float = 0.0
    test: str = ""
    seen_by: str = ""
    verdict: str = ""
    message: str = ""
    text: str = ""
    others: tuple[str, ...] = ()
    names_function: bool = False
    names_request: bool = False
    reached: bool = False
    reason: str = ""
    tests: int = 0
    targets: tuple[str, ...] = ()
    device: str = ""
    """The device on which it was detected, if that is not the bench's own."""


@dataclass(frozen=True)
class Baseline:
    """The result of the suite on the unmodified SGLang.

    `red`: failing tests, which count for no revert. `probed`: calls of the reverted functions were
    recorded in the same run.
    """

    green: bool
    tests: int
    seconds: float
    red: tuple[str, ...] = ()
    reason: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    probed: bool = False


def judge_baseline(run: Run) -> Baseline:
    """Judge the run on the unmodified SGLang. A run without any test is not green."""
    red = tuple(dict.fromkeys(r.test for r in run.reds))
    reason = _why_not_run(run)
    if not reason and run.status is None:
        reason = "over its deadline"
    if not reason and red:
        reason = f"{len(red)} red"
    return Baseline(
        green=not reason,
        tests=len(run.seconds_of),
        seconds=run.seconds,
        red=red,
        reason=reason,
        texts={r.test: r.text[:_MAX_TEXT] for r in run.reds},
    )


def misfit(case: Case) -> Result:
    """Return the result of a revert for another version of SGLang; nothing was run."""
    return _without_run(case, Status.MISFIT, case.misfit)


def missed(case: Case, reason: str) -> Result:
    """Return the result of a revert that is certainly missed; nothing was run."""
    return _without_run(case, Status.MISSED, reason)


def _without_run(case: Case, status: Status, reason: str) -> Result:
    title, targets = case.revert.title, case.targets
    return Result(case.id, case.digest, title, status, reason=reason, targets=targets)


def judge(case: Case, run: Run, red_anyway: frozenset[str]) -> Result:
    """Judge a run with a revert; failures of tests in `red_anyway` do not count."""
    reds = [red for red in run.reds if red.test not in red_anyway]
    ran = [red for red in reds if red.verdict not in _NOT_RUN]
    if case.only_reaching and run.reached and not ran:
        ran = reds  # the edit is why its worker group does not start: tests can see that
    status, reason = _status(run, reds, ran)
    first = (ran or reds)[0] if reds else None
    result = Result(
        id=case.id,
        digest=case.digest,
        title=case.revert.title,
        status=status,
        seconds=run.seconds,
        reached=bool(run.reached),
        reason=reason,
        tests=len(run.seconds_of),
        targets=case.targets,
    )
    return result if first is None else _with_failure(result, case, first, reds)


def _status(run: Run, reds: list[Red], ran: list[Red]) -> tuple[Status, str]:
    if ran and run.reached:
        return Status.CAUGHT, ""
    if ran:
        return Status.FAILED, "red, but no test got to the reverted code"
    if reds:
        return Status.FAILED, reds[0].message
    if not_run := _why_not_run(run):
        return Status.FAILED, not_run
    if run.status is None:
        return Status.HUNG, f"over its deadline, without a red test, in {_under_way(run)}"
    if not run.reached:
        return Status.MISSED, NOT_REACHED
    tests = dict.fromkeys(r.test for r in run.reached)
    return Status.MISSED, f"{len(tests)} tests get to the reverted code, none went red"


def _why_not_run(run: Run) -> str:
    """Return why the run has not run tests; "" if it has."""
    if run.errors:
        return run.errors[0]
    if run.status == _NO_TESTS:
        return "pytest collected no test"
    if run.status not in (None, 0, 1):
        why = "pytest refused its arguments" if run.status == _USAGE else "pytest broke"
        return f"{why} (exit code {run.status}):\n{run.output[-2000:].strip()}"
    if not run.topologies or (run.status is not None and not run.seconds_of):
        return f"no test ran:\n{run.output[-2000:].strip()}"
    return ""


def _under_way(run: Run) -> str:
    """Name the test that was running at the deadline: the first one without a result."""
    left = [test for test in run.topologies if test not in run.seconds_of]
    return left[0] if left else "no test"


def _with_failure(result: Result, case: Case, first: Red, reds: list[Red]) -> Result:
    said = "\n".join(
        line for line in first.text.splitlines() if not line.startswith("reverted:")
    )  # that line would name the function in every failure
    functions = "|".join(map(re.escape, sorted(case.functions)))
    others = dict.fromkeys(red.test for red in reds if red.test != first.test)
    values = {
        **vars(result),
        "test": first.test,
        "seen_by": first.seen_by,
        "verdict": first.verdict,
        "message": first.message[:_MAX_TEXT],
        "text": _shortened(first.text),
        "others": tuple(others),
        "names_function": re.search(rf"\b(?:{functions})\b", said) is not None,
        "names_request": _REQUEST.search(said) is not None,
    }
    return Result(**values)


def _shortened(text: str) -> str:
    if len(text) <= 2 * _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}\n...\n{text[-_MAX_TEXT:]}"
