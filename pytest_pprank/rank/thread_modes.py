"""Modes of torch belong to a thread: this one makes all threads that run tests enter them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from pytest_pprank.lifecycle import Cleanups

_modes: list[AbstractContextManager[object]] = []


def enter_in_all_threads(mode: AbstractContextManager[object], cleanups: Cleanups) -> None:
    """Enter `mode` in this thread now, and in event loops that begin later; leave it at the end."""
    mode.__enter__()
    _modes.append(mode)

    def leave() -> None:
        _modes.remove(mode)
        mode.__exit__(None, None, None)

    cleanups.at_end(leave)


@contextmanager
def thread_modes() -> Iterator[None]:
    """Enter the modes of the running test in this thread, for the time of the block."""
    with ExitStack() as stack:
        for mode in _modes:
            stack.enter_context(mode)
        yield
