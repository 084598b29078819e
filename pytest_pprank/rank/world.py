"""Compares the state of a rank before and after a test, in which the next test would start.

A change is attributed to the test's own code, and not to a fixture that several tests share, if it
was made during the test's call and was not undone by the end of its teardown.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_pprank.oplog.record import ledger
from pytest_pprank.protocol.world import Groups, World
from pytest_pprank.rank import settings
from pytest_pprank.rank.handle import Pprank

_NOT_THE_TESTS = ("PYTEST_", "TRITON_PTXAS_PATH")
"""How variables begin that pytest sets, and torch's compiler with its first kernel."""
_THREAD_SECONDS = 0.5
"""How long a thread of a finished test may take to end."""
_GONE = (
    "the default process group, which other tests of this worker group share, was destroyed: "
    "initialise it again, or use @pytest.mark.pprank(fresh=True)"
)
_LEFT = "a default process group was initialised and not destroyed (dist.destroy_process_group())"
_THREAD = (
    "thread {!r}, which the test has started and which has used torch.distributed, still runs: "
    "end and join it"
)


@dataclass(frozen=True)
class _State:
    settings: tuple[object, ...]
    environment: Mapping[str | bytes, str | bytes]
    threads: frozenset[threading.Thread]
    has_default: bool


class WorldWatch:
    """Reads the state before and after the call of each test, and at the end of its teardown."""

    def __init__(self, pprank: Pprank, *, separate_roles: bool) -> None:
        """With `separate_roles` each instance of a role has its own torch.distributed world."""
        self._pprank = pprank
        self._of = pprank.instance if separate_roles else ""
        self._before: _State | None = None
        self._after: _State | None = None
        self._shares = False

    def begin_test(self) -> None:
        """Begin a test, before its fixtures are set up."""
        self._before = self._after = None
        self._shares = False

    def begin_call(self) -> None:
        """Read the state before the test's own code runs."""
        self._before = _state()

    def end_call(self) -> None:
        """Read the state after the test's own code has run."""
        self._after = _state()

    def set_up(self, scope: str) -> None:
        """Note that a fixture of `scope` is set up.

        During a call, a fixture of a scope wider than the function may change state for several
        tests. The changes of such a test are ignored.
        """
        if self._before is not None and self._after is None:
            self._shares |= scope != "function"

    def end(self, *, last: bool) -> World:
        """Return the state after the test, and restore the settings; may spoil the group.

        `last`: no other test of this group follows, so the test may destroy the default group.
        """
        before, after = self._before, self._after
        changed: tuple[str, ...] = ()
        restored: list[str] = []
        if before is not None and after is not None and not self._shares:
            restored = settings.restore(before.settings, after.settings)
            changed = _changed(before.environment, after.environment)
            if not self._pprank.failed and not last:
                self._check(before, after)
        return World(
            self._of,
            *_distributed(),
            environment=changed,
            restored=tuple(restored),
            caught=ledger.erred() and not self._pprank.failed,
        )

    def _check(self, before: _State, after: _State) -> None:
        if before.has_default and not after.has_default and not _has_default():
            self._pprank.spoil(_GONE)
        elif not before.has_default and after.has_default and _has_default():
            self._pprank.spoil(_LEFT)
        for thread in _still_communicating(after.threads - before.threads):
            self._pprank.spoil(_THREAD.format(thread.name))


def _state() -> _State:
    return _State(
        settings.values(),
        _environment(),
        frozenset(threading.enumerate()),
        _has_default(),
    )


def _environment() -> dict[str | bytes, str | bytes]:
    # undecoded: decoding everything would take longer than the rest of this module
    return {**getattr(os.environ, "_data", os.environ)}


def _changed(
    before: Mapping[str | bytes, str | bytes], after: Mapping[str | bytes, str | bytes]
) -> tuple[str, ...]:
    """Return the names of the variables that were changed and still are."""
    if before == after:
        return ()
    now = _environment()
    names = before.keys() | after.keys()
    changed = [n for n in names if before.get(n) != after.get(n) == now.get(n)]
    return tuple(sorted(n for n in map(os.fsdecode, changed) if not n.startswith(_NOT_THE_TESTS)))


def _still_communicating(started: frozenset[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that may still issue operations in the next test."""
    if not started:
        return []
    names = ledger.threads()
    # a thread that stands for another runs only while that one waits for it
    found = [t for t in started if t.name in names and not hasattr(t, "stands_for")]
    for thread in found:
        thread.join(_THREAD_SECONDS)
    return [thread for thread in found if thread.is_alive()]


def _has_default() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed is not None and distributed.is_initialized())


def _distributed() -> tuple[str, int, Groups | None]:
    """Return the fields of World about torch.distributed: default, created, groups."""
    if not _has_default():
        return "", 0, {}
    from torch.distributed import distributed_c10d as c10d

    # torch counts the default group, too, unless it was given a name
    return str(c10d.get_backend()), int(c10d._world.group_count), ledger.groups()
