"""Why a request has ended, on each stage: a verdict that is there stays.

A request may have to be kept when it has ended, as on prefill while its KV is on its way; whoever
lets it go must leave its reason alone. Each stage looks at its own requests at the top of every
iteration, and once more at those that have gone meanwhile.
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
    """A request that had ended for one reason has another one."""


class ReasonWatch:
    """Follows the finish reasons of the requests of one stage."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Req, str]] = {}
        self._changes: list[str] = []

    def look(self, requests: Iterable[Req]) -> None:
        """Look at the requests that this stage holds now, and at those that it held before."""
        held = {req.rid: req for req in requests}
        for rid, (req, before) in [*self._known.items()]:
            after = finish_reason_of(req)
            if before and after != before:
                self._changes.append(
                    f"{rid} had ended by {before}, and now by {after or 'nothing'}"
                )
            if rid not in held:
                del self._known[rid]
        self._known.update({rid: (req, finish_reason_of(req)) for rid, req in held.items()})

    def fresh(self) -> tuple[str, ...]:
        """Return, in words, the changes since the last call."""
        changes, self._changes = tuple(self._changes), []
        return changes


def check_reasons(changes: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Raise ReasonChanged where there are changes, given by place in words."""
    __tracebackhide__ = True
    lines = [f"{place}: {change}" for place, each in changes for change in each]
    if lines:
        raise ReasonChanged("\n".join(["a finish reason was overwritten:", *lines, _CAUSE]))
