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

    def evidence(self) -> dict[str, Any] | None:
        text = "\n".join(self._ran)
        role = self.watch.pprank.role
        return {
            "role": role,
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
        # [good, bad], of which the bad ones are those of any stage
        ready = brought[0] if brought and isinstance(brought[0], list) else brought
        extra = sorted(set(ready) - local)
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
        wanted, done = _flat(received), _flat(applied)
        # the first stage decides: it may do less than was agreed (no room), and give up what has
        # failed meanwhile; the others get what it has done. A plain list has no place for those.
        first = self.watch.pprank.stage == 0
        pairs = bool(applied) and all(isinstance(part, list) for part in applied)
        missing = wanted - done if pairs and not first else set()
        extra = (_flat(applied[:1]) if pairs and first else done) - wanted
        if missing or extra:
            wrong = ", ".join(sorted(missing | extra))
            self.watch.report(
                f"consensus received and applied differ in {wrong}: received "
                f"{sorted(wanted)}, applied {sorted(done)}",
                _stack(),
                _APPLY,
            )


def _flat(rids: Any) -> set[str]:
    return {rid for part in rids for rid in (part if isinstance(part, list) else [part])}


def _stack() -> Any:
    from pytest_pprank.sglang.taps import call_sites

    return call_sites()
