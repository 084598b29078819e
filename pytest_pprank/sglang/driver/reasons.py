"""Checks on each stage that a finish reason, once set, does not change.

A finished request may have to be kept, as on prefill while its KV is being sent. The code that
releases it later must leave its finish reason alone. Each stage checks its requests at the top of
every iteration, and once more after they have left the stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.requests import finish_reason_of

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req

_CAUSE = (
    "usual cause: what lets a request go sets a reason without looking whether there is one "
    "(SGLang PR 30937)"
)


class ReasonChanged(AssertionError):
    """The finish reason of a finished request was overwritten."""


class ReasonWatch:
    """Tracks the finish reasons of one stage's requests."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Req, str]] = {}
        self._changes: list[str] = []

    def look(self, requests: Iterable[Req]) -> None:
        """Check the requests that are on this stage now, and those that were before."""
        current = {req.rid: req for req in requests}
        for rid, (req, before) in [*self._known.items()]:
            after = finish_reason_of(req)
            if before and after != before:
                self._changes.append(
                    f"{rid} had ended by {before}, and now by {after or 'nothing'}"
                )
            if rid not in current:
                del self._known[rid]
        self._known.update({rid: (req, finish_reason_of(req)) for rid, req in current.items()})

    def take_new(self) -> tuple[str, ...]:
        """Return, in words, the changes since the last call."""
        changes, self._changes = tuple(self._changes), []
        return changes


def check_reasons(changes: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Raise ReasonChanged if there are any changes; `changes` is by place, in words."""
    __tracebackhide__ = True
    lines = [f"{place}: {change}" for place, each in changes for change in each]
    if lines:
        raise ReasonChanged("\n".join(["a finish reason was overwritten:", *lines, _CAUSE]))
