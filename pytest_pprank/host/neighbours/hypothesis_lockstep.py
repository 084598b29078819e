"""Runs the examples of hypothesis on all ranks at once (see hypothesis_examples).

This module imports hypothesis and so is separate.
"""

from __future__ import annotations

import functools
import inspect
import math
import pickle
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis.control import current_build_context
from hypothesis.database import ExampleDatabase
from hypothesis.errors import StopTest, UnsatisfiedAssumption
from hypothesis.internal.conjecture import engine

from pytest_pprank.errors import PeerError, UsageError
from pytest_pprank.rank.handle import Pprank

_T = TypeVar("_T")
_PASSED, _REJECTED, _STOPPED, _FAILED = "passed", "rejected", "stopped", "failed"
_FAILURES = (Exception, SystemExit, pytest.fail.Exception)
_SETTINGS = "_hypothesis_internal_use_settings"
_SEED = "_hypothesis_internal_use_seed"
_SHOWN = 300


class ExampleFailed(Exception):
    """The exception that hypothesis sees on every rank if an example has failed on any.

    It is the same on all ranks; `error` is what this rank reports.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(_words(error))
        self.error = error


class RanksApart(BaseException):
    """Ends hypothesis on this rank, because the ranks can no longer run the same examples."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(_words(error))
        self.error = error


class _TooLate(Exception):
    """A peer did not come in time."""


@dataclass(frozen=True)
class _Ending:
    """How an example ended on a rank. `choices`: everything that was drawn, as text."""

    status: str
    choices: str
    targets: dict[str, float]
    words: str = ""
    is_consequence: bool = False


class Lockstep:
    """Runs one property-based test in step with the same test on the other ranks."""

    def __init__(self, test: Any, pprank: Pprank, grace: float) -> None:
        self.call = _raising_own_error(test)
        """The test, raising this rank's own error instead of the one that hypothesis sees."""
        self._handle = test.hypothesis
        self._pprank = pprank
        self._grace = grace
        self._inner = self._handle.inner_test
        self._functions = list(_with_settings(test))
        self._before = [(f, getattr(f, _SETTINGS), getattr(f, _SEED)) for f in self._functions]
        self._where = _place(self._inner)
        self._examples = 0
        self._last_meeting = time.monotonic()

    def begin(self) -> None:
        """Give hypothesis settings under which it does the same on every rank."""
        if hasattr(engine, "MAX_SHRINKING_SECONDS"):
            engine.MAX_SHRINKING_SECONDS = math.inf
        seed = self._pprank.broadcast(secrets.randbits(64))
        for function, settings, own_seed in self._before:
            setattr(function, _SETTINGS, self._common(settings))
            forced = hypothesis.core.global_force_seed is not None
            if own_seed is None and not settings.derandomize and not forced:
                setattr(function, _SEED, seed)
        self._handle.inner_test = self._wrap(self._inner)

    def end(self) -> None:
        """Restore the settings."""
        self._handle.inner_test = self._inner
        for function, settings, seed in self._before:
            setattr(function, _SETTINGS, settings)
            setattr(function, _SEED, seed)

    def _common(self, settings: hypothesis.settings) -> hypothesis.settings:
        by_the_clock = (HealthCheck.too_slow,)
        return hypothesis.settings(
            settings,
            deadline=None,
            database=SharedDatabase(self._pprank, settings.database),
            report_multiple_bugs=False,
            suppress_health_check=[*settings.suppress_health_check, *by_the_clock],
        )

    def _wrap(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def example(*args: object, **kwargs: object) -> object:
            __tracebackhide__ = True
            self._start()
            result, error = None, None
            try:
                result = inner(*args, **kwargs)
            except (*_FAILURES, StopTest) as caught:
                error = caught
            self._finish(error)  # outside `except`: else the new error would have this as context
            return result

        @functools.wraps(inner)
        async def async_example(*args: object, **kwargs: object) -> object:
            __tracebackhide__ = True
            self._start()
            result, error = None, None
            try:
                result = await inner(*args, **kwargs)
            except (*_FAILURES, StopTest) as caught:
                error = caught
            self._finish(error)
            return result

        return async_example if inspect.iscoroutinefunction(inner) else example

    def _start(self) -> None:
        self._examples += 1
        drawn = self._meet(f"the start of hypothesis example {self._examples}", _choices(), None)
        if len(set(drawn)) > 1:
            raise RanksApart(UsageError(self._describe_draws(drawn)))

    def _finish(self, error: BaseException | None) -> None:
        __tracebackhide__ = True
        status = _status(error)
        mine = _Ending(
            status,
            _choices(),
            dict(current_build_context().data.target_observations),
            _words(error) if error is not None and status == _FAILED else "",
            isinstance(error, PeerError),
        )
        endings = self._meet(f"the end of hypothesis example {self._examples}", mine, error)
        _share_targets(endings)
        if any(ending.status == _FAILED for ending in endings):
            self._fail(error if status == _FAILED else None, endings)
        drawn = [ending.choices for ending in endings]
        if len(set(drawn)) > 1:
            raise RanksApart(UsageError(self._describe_draws(drawn)))
        if error is not None:
            raise error
        if any(ending.status == _REJECTED for ending in endings):
            hypothesis.reject()

    def _fail(self, error: BaseException | None, endings: list[_Ending]) -> NoReturn:
        __tracebackhide__ = True
        if error is None:
            failed = [(r, e) for r, e in enumerate(endings) if e.status == _FAILED]
            rank, ending = next(((r, e) for r, e in failed if not e.is_consequence), failed[0])
            error = PeerError(f"this example failed on rank {rank}: {ending.words}")
        if len({ending.choices for ending in endings}) > 1:
            _add_note(error, "The example is not minimal: not all ranks have drawn all of it.")
            raise RanksApart(error)
        raise ExampleFailed(error)

    def _meet(self, operation: str, mine: _T, error: BaseException | None) -> list[_T]:
        """Gather `mine` of every rank, in a limited time.

        The limit is the grace period, or the time since the last meeting if that is longer.
        """
        __tracebackhide__ = True
        seconds = max(self._grace, time.monotonic() - self._last_meeting)
        missing: BaseException
        try:
            with _at_most(seconds):
                payloads = self._pprank._control.exchange(
                    operation, pickle.dumps(mine), self._where
                )
        except PeerError as peer_error:
            missing = peer_error
        except _TooLate:
            missing = PeerError(f"not all ranks came to {operation} within {seconds:.1f} s")
        else:
            self._last_meeting = time.monotonic()
            return [pickle.loads(payload or b"") for payload in payloads]
        if _status(error) == _REJECTED:
            missing = UsageError(
                "this rank rejected a hypothesis example (assume, reject), and a peer went on with "
                f"it: {missing}\nin a ranked test, assume the same things on all ranks"
            )
        elif error is not None and _status(error) == _FAILED:
            if not isinstance(error, PeerError):
                _add_note(error, f"The example is not minimal: {missing}")
            missing = error
        raise RanksApart(missing)

    def _describe_draws(self, drawn: list[str]) -> str:
        lines = "\n".join(f"  rank {rank} drew {text[:_SHOWN]}" for rank, text in enumerate(drawn))
        return (
            f"hypothesis drew different values on the ranks in example {self._examples}:\n{lines}\n"
            "in a ranked test, what is drawn must not depend on the rank, on time, or on anything "
            "else that differs between ranks"
        )


class SharedDatabase(ExampleDatabase):  # type: ignore[misc]  # untyped
    """The example database of rank 0, used by all ranks."""

    def __init__(self, pprank: Pprank, own: ExampleDatabase) -> None:
        super().__init__()
        self._pprank = pprank
        self._own = own if pprank.rank == 0 else None

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Return what rank 0's database has; all ranks must call it."""
        found = sorted(self._own.fetch(key)) if self._own is not None else []
        shared: list[bytes] = self._pprank.broadcast(found)
        return shared

    def save(self, key: bytes, value: bytes) -> None:
        """Save an example (on rank 0)."""
        if self._own is not None:
            self._own.save(key, value)

    def delete(self, key: bytes, value: bytes) -> None:
        """Delete an example (on rank 0)."""
        if self._own is not None:
            self._own.delete(key, value)


def _with_settings(test: Callable[..., object]) -> Iterator[Callable[..., object]]:
    """Yield the functions that have hypothesis's settings: @given's and its wrappers."""
    function = getattr(test, "__func__", test)
    while function is not None:
        if _SETTINGS in vars(function):
            yield function
        function = getattr(function, "__wrapped__", None)


def _share_targets(endings: list[_Ending]) -> None:
    """Set the observations of `hypothesis.target` to the largest ones of all ranks."""
    largest: dict[str, float] = {}
    for ending in endings:
        for label, value in ending.targets.items():
            largest[label] = max(value, largest.get(label, value))
    observed = current_build_context().data.target_observations
    observed.clear()
    observed.update(sorted(largest.items()))


def _choices() -> str:
    return repr(current_build_context().data.choices)


def _status(error: BaseException | None) -> str:
    if error is None:
        return _PASSED
    if isinstance(error, UnsatisfiedAssumption):
        return _REJECTED
    return _STOPPED if isinstance(error, StopTest) else _FAILED


def _place(test: Callable[..., object]) -> str:
    code = inspect.unwrap(test).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def _words(error: BaseException) -> str:
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:_SHOWN]


def _add_note(error: BaseException, text: str) -> None:
    # as add_note, which Python 3.10 lacks
    error.__notes__ = [*getattr(error, "__notes__", ()), text]  # type: ignore[attr-defined]


def _raising_own_error(test: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(test)
    def call(*args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        try:
            return test(*args, **kwargs)
        except (ExampleFailed, RanksApart) as caught:
            _move_notes(caught)
            error = caught.error
        if isinstance(error, UsageError) and error.__traceback__ is None:
            pytest.fail(str(error), pytrace=False)  # never raised: there is no traceback to show
        raise error  # outside `except`: else the caught error would be shown as its context

    return call


def _move_notes(failed: ExampleFailed | RanksApart) -> None:
    """Copy hypothesis's notes (the example) to the error that the rank reports."""
    for note in getattr(failed, "__notes__", ()):
        # hypothesis explains a failure by lines that led to it: leave out those of this file
        lines = [line for line in note.splitlines() if __file__ not in line]
        if lines and not lines[-1].endswith(":"):
            _add_note(failed.error, "\n".join(lines))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise _TooLate inside the block after `seconds`; resume the test's own alarm after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_late(*_: object) -> NoReturn:
        raise _TooLate

    handler = signal.signal(signal.SIGALRM, too_late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            rest = left - (time.monotonic() - start)
            signal.setitimer(signal.ITIMER_REAL, max(rest, 1e-3))
