"""Stages of a pipeline do the same: the same batches in the same order, and what they agreed on.

The consensus on requests of prefill and decode goes round the stages (SchedulerPPMixin): each
brings the ids that it is ready for, the last stage's result goes to the first one, and from there
on each stage applies what it receives and sends on what it has applied.
"""

from __future__ import annotations

from typing import Any, ClassVar
from zlib import crc32

from pytest_pprank.sanitizers.base import Sanitizer

_APPLY = (
    "every stage must apply the consensus that it receives, whatever its own state has become "
    "meanwhile (SGLang PR 31869)"
)
_SUBSET = "consensus is what all stages are ready for: an intersection, never a union"


class Consensus(Sanitizer):
    """Watches what is brought, received and applied on this stage, and notes what it runs."""

    name: ClassVar[str] = "consensus"

    def begin(self) -> None:
        self._local: set[str] | None = None
        self._ran: list[str] = []
        self.watch.listen("init_new", self._run)
        self.watch.listen("consensus_local", self._look)
        self.watch.listen("consensus_bring", self._bring)
        self.watch.listen("consensus_apply", self._apply)

    def evidence(self) -> dict[str, Any]:
        text = "\n".join(self._ran)
        return {
            "role": self.watch.pprank.role,
            "stage": self.watch.pprank.stage,
            "count": len(self._ran),
            "hash": crc32(text.encode()),
            "last": self._ran[-1] if self._ran else "none",
        }

    def _run(self, passage: Any) -> None:
        from pytest_pprank.sglang.engine_loop import iteration_of_this_thread
        from pytest_pprank.sglang.engine_views import forward_of

        # elsewhere, as in the profiler, one stage may run what the others do not
        if iteration_of_this_thread() is not None:
            self._ran.append(str(forward_of(passage.argument(1, "batch"), 0)))

    def _look(self, passage: Any) -> None:
        """`get_rids`: the ids in the first of the wanted states are the ready ones."""
        found = passage.result
        self._local = set(found[0] if isinstance(found, tuple) else found)

    def _bring(self, passage: Any) -> None:
        brought, local = passage.result, self._local
        self._local = None
        if brought is None or local is None:
            return
        extra = sorted(set(_ready(brought)) - local)
        if extra:
            self.watch.report(
                f"this stage brings {', '.join(extra)} as ready, and is not ready for it: its own "
                f"are {', '.join(sorted(local)) or 'none'}",
                _stack(),
                _SUBSET,
            )

    def _apply(self, passage: Any) -> None:
        received, applied = passage.argument(1, "rids"), passage.result
        if received is None or applied is None:
            return
        wanted, done = set(_ready(received)), set(_ready(applied))
        # the first stage may do less than was agreed (no room): the others get what it has done;
        # a plain list has no place for those that have failed
        exact = self.watch.pprank.stage > 0 and _has_failed_ones(applied)
        missing = wanted - done if exact else set()
        if missing or done - wanted:
            wrong = ", ".join(sorted(missing | (done - wanted)))
            self.watch.report(
                f"consensus received and applied differ in {wrong}: received "
                f"{sorted(wanted)}, applied {sorted(done)}",
                _stack(),
                _APPLY,
            )


def _has_failed_ones(rids: Any) -> bool:
    return bool(rids) and isinstance(rids[0], list)


def _ready(rids: Any) -> list[str]:
    """Return the ready ones of ``[ready, failed]``, or of a plain list."""
    return list(rids[0] if _has_failed_ones(rids) else rids)


def _stack() -> Any:
    from pytest_pprank.sglang.taps import call_sites

    return call_sites()
