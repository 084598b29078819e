"""Runs the sanitizers of a test on this rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pytest_pprank.checks import row_of
from pytest_pprank.checks.base import Sanitizer, Watch
from pytest_pprank.protocol.findings import Finding

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.events.types import Quiescent

_running: SanitizerRun | None = None


class SanitizerRun:
    """The sanitizers of one test."""

    def __init__(
        self, names: Sequence[str], pprank: Pprank, send: Callable[[Finding], None]
    ) -> None:
        self._pprank = pprank
        self._sanitizers: list[Sanitizer] = []
        for name in names:
            sanitizer: Sanitizer = resolve_name(row_of(name).place)(Watch(name, pprank, send))
            self._sanitizers.append(sanitizer)
            sanitizer.watch.guard(sanitizer.begin)

    def quiescent(self, left: Quiescent) -> bool:
        """Nothing may be held now; returns whether something was found."""
        before = self._found()
        for sanitizer in self._sanitizers:
            sanitizer.watch.guard(sanitizer.quiescent, left)
        return self._found() > before

    def close(self) -> str:
        """End them; returns, as JSON, what the controller needs to know beside the findings."""
        evidence = {}
        for sanitizer in self._sanitizers:
            if not self._pprank.failed:
                sanitizer.watch.guard(sanitizer.end)
            sanitizer.watch.close()
            name = sanitizer.name
            brought = None if sanitizer.watch.off else sanitizer.evidence()
            if brought is not None:
                evidence[name] = brought
        counts = {k: n for s in self._sanitizers for k, n in s.watch.counts.items() if n > 1}
        told = {"evidence": evidence, "counts": counts, "given_up": bool(self._pprank.spoiled)}
        told["off"] = {s.name: s.watch.off for s in self._sanitizers if s.watch.off}
        return json.dumps(told) if any(told.values()) else ""

    def _found(self) -> int:
        return sum(sum(sanitizer.watch.counts.values()) for sanitizer in self._sanitizers)


@contextmanager
def sanitizing(
    names: Sequence[str], pprank: Pprank, send: Callable[[Finding], None]
) -> Iterator[Callable[[], str]]:
    """Run sanitizers inside the block; yields what ends them, and returns what they bring."""
    global _running
    if not names:
        yield lambda: ""
        return
    _running = SanitizerRun(names, pprank, send)
    try:
        yield _running.close
    finally:
        _running = None


def at_quiescence(scheduler: Any, pprank: Pprank) -> None:
    """Say that the event loops of a Scheduler have been left in good order, with all work done.

    The test counts as failed on this rank where a sanitizer finds something then.
    """
    if _running is None or pprank.failed:
        return
    from pytest_pprank.sglang.events.quiescent import quiescent

    if _running.quiescent(quiescent(scheduler)):
        pprank.failed = True
