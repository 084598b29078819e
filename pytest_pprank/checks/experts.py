"""Each rank's experts contribute what their weights make of the tokens that have chosen them.

The sum over all ranks, which the next layer gets, does not show whose part is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.words import ranges

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.types import ExpertsRan

_CURE = (
    "which experts a rank has, and their numbers there, must be the same in the router, the "
    "dispatcher and the kernel (local_expert_mapping); -1 is an expert of another rank"
)


class Experts(Sanitizer):
    """Checks the output of this rank's experts before it is summed over ranks."""

    name: ClassVar[str] = "experts"

    def begin(self) -> None:
        if self.watch.pprank.ep_size > 1:
            self.watch.listen("experts", self._check)

    def _check(self, event: ExpertsRan) -> None:
        for nothing in (True, False):
            rows = [row for row in event.wrong if row.nothing is nothing]
            if not rows:
                continue
            chosen = sorted({expert for row in rows for expert in row.experts})
            own = f"experts {event.own.start} to {event.own.stop - 1}"
            verb = "leave out" if nothing else "do not give what their weights make of"
            tokens = ranges([row.token for row in rows])
            self.watch.report(
                f"layer {event.layer}: this rank's {own} {verb} {len(rows)} of {event.tokens} "
                f"tokens of the batch ({tokens}), which have chosen "
                f"{', '.join(map(str, chosen)) or 'none of them'}",
                self.watch.stack(),
                _CURE,
            )
