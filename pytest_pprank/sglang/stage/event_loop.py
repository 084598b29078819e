"""Runs a Scheduler's event loop in a thread, paused between two iterations.

SGLang's loops never return and keep state in local variables. To pause a loop, its frames must stay
alive, in a thread or a greenlet. It is a thread, because the loop sets per-thread state (inference
mode, the current CUDA device and stream), which the test's own code must not inherit, as it would
in a greenlet. Only one of the two runs at a time: while the loop runs, the test's thread waits in
`run_to`; while the test's thread runs, the loop waits in `at_top`.
"""

from __future__ import annotations

import contextvars
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

THREAD_NAME = "sglang-event-loop"


_of_thread: WeakKeyDictionary[threading.Thread, LoopThread] = WeakKeyDictionary()


class LeaveLoop(BaseException):
    """Raised in the loop's thread to end an event loop; SGLang's handlers do not catch it."""


class LoopEnded(Exception):
    """The event loop returned by itself, which SGLang's loops do only to shut down."""


@contextmanager
def _warnings_of_sglang() -> Iterator[None]:
    """Relax warning filters while the loop runs: filterwarnings=error is for users' own code."""
    with warnings.catch_warnings():  # affects all threads; the test's thread only waits
        warnings.simplefilter("default")
        # raised for each pickled message between stages; torch warns once per process
        warnings.filterwarnings("ignore", "The given (buffer|NumPy array) is not writable")
        # raised for SGLang's own call of xgrammar
        warnings.filterwarnings("ignore", "max_rollback_tokens is deprecated")
        yield


class LoopThread:
    """Runs `loop`, which must call `at_top` at the top of each of its iterations.

    An iteration is one turn in which the loop receives requests: with pipeline parallelism one
    microbatch slot, else one batch.
    """

    def __init__(self, loop: Callable[[], None]) -> None:
        self._loop = loop
        self._change = threading.Condition()
        self._tops = 0
        self._target = 0
        self._leave = False
        self._ended = False
        self._error: BaseException | None = None
        # SGLang keeps flags in ContextVars, which a new thread does not inherit
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=THREAD_NAME, daemon=True
        )
        # read by the ledger of operations (oplog.record.calls)
        self._thread.stands_for = threading.current_thread().name  # type: ignore[attr-defined]
        _of_thread[self._thread] = self

    def start(self) -> None:
        """Enter the loop; it runs up to the top of its first iteration."""
        self._thread.start()

    @property
    def completed(self) -> int:
        """Number of completed iterations."""
        return max(0, self._tops - 1)

    @property
    def parked(self) -> bool:
        """Whether the loop waits at the top of an iteration, and has not failed."""
        return self._tops > self._target and not self._ended

    def at_top(self) -> None:
        """Wait until the loop may continue. Called by the loop, in its thread."""
        with self._change:
            self._tops += 1
            self._change.notify_all()
            self._change.wait_for(lambda: self._leave or self.completed < self._target)
            if self._leave:
                raise LeaveLoop

    def run_to(self, iterations: int) -> None:
        """Run the loop until it has done `iterations` in total; raises what the loop raised."""
        __tracebackhide__ = True
        with _warnings_of_sglang(), self._change:
            self._target = max(self._target, iterations)
            self._change.notify_all()
            self._change.wait_for(lambda: self._ended or self._tops > self._target)
        if self._ended:
            raise self._error or LoopEnded("SGLang's event loop returned")

    def leave(self) -> None:
        """End the loop at the top of an iteration, where it waits, and join its thread."""
        with self._change:
            self._leave = True
            self._change.notify_all()
        self._thread.join()

    def leave_inside(self) -> None:
        """Let the waiting loop begin one more iteration, in which a hook raises LeaveLoop."""
        with _warnings_of_sglang():
            with self._change:
                self._target += 1
                self._change.notify_all()
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        __tracebackhide__ = True
        try:
            self._loop()
        except LeaveLoop:
            pass
        except BaseException as error:  # re-raised in the test's thread
            self._error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()


def iteration_of_this_thread() -> int | None:
    """Return how many iterations this thread's event loop has done; None in other threads."""
    loop = _of_thread.get(threading.current_thread())
    return None if loop is None else loop.completed


def loop_is_running() -> bool:
    """Return whether an event loop has been entered and not been left."""
    return any(thread.is_alive() for thread in list(_of_thread))
