"""No table of SGLang names a request that has ended, or its bootstrap room."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.checks.base import Sanitizer

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.types import Quiescent

_CURE = (
    "every path that ends a request (finish, abort, failure, time-out) must remove it from each "
    "table that it is in: the table grows, and a later request of that id or room finds the entry"
)


class Bookkeeping(Sanitizer):
    """Looks at the Scheduler's tables when all requests have ended; see sglang.stage.leftovers."""

    name: ClassVar[str] = "bookkeeping"

    def quiescent(self, left: Quiescent) -> None:
        if tables := left.leftovers():
            head = "still in SGLang's tables, with all requests done:"
            self.watch.report("\n".join([head, *tables]), (), _CURE)
