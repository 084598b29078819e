"""Sanitizers with events that tests make, where neither torch nor SGLang is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank.checks.base import Sanitizer, Watch
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.sglang.events.types import Event


class Watched(Watch):
    """A Watch whose events a test makes. `found`: the findings, `lines`: their first lines."""

    def __init__(self, kind: type[Sanitizer], **pprank: Any) -> None:
        self.found: list[Finding] = []
        self.listeners: dict[str, list[Callable[[Any], object]]] = {}
        seat = {"role": "pp", "stage": 0, "device": "cpu", "failed": False, "spoiled": ""}
        seat["instance"] = pprank.get("role", "pp")
        rank = pprank.get("stage", 0)
        seat |= {"rank": rank, "role_ranks": range(2), "place_in_role": f"stage {rank}"}
        seat |= {"dp_rank": 0, "attention_tp": (0, 1)}
        super().__init__(kind.name, SimpleNamespace(**{**seat, **pprank}), self.found.append)  # type: ignore[arg-type]
        self.sanitizer = kind(self)
        self.sanitizer.begin()

    @property
    def lines(self) -> list[str]:
        """The findings' first lines."""
        return [finding.text.partition("\n")[0] for finding in self.found]

    def listen(self, seam: str, listener: Callable[[Any], object]) -> None:
        self.listeners.setdefault(seam, []).append(listener)

    def emit(self, seam: str, event: Event) -> None:
        """Send the sanitizer an event of a hook point to which it listens."""
        for listener in self.listeners[seam]:
            self.guard(listener, event)


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    """Return a factory that takes a sanitizer's class and attributes of `pprank`."""
    made: list[Watched] = []

    def make(kind: type[Sanitizer], **pprank: Any) -> Watched:
        made.append(Watched(kind, **pprank))
        return made[-1]

    yield make
    for each in made:
        each.close()
