"""All stages of a pipeline run the same batches in the same order, and apply what they agreed on.

The consensus on requests of prefill and decode goes round the stages (SchedulerPPMixin). Each stage
contributes the ids that it is ready for, and the last stage's result goes to the first one. From
there on each stage applies what it receives and sends on what it has applied. From SGLang 0.5.22 on
the first stage alone decides which requests prefill starts, according to the states of rooms that
the other stages have sent it; each stage applies its decisions.
"""

from __future__ import annotations

from typing import ClassVar
from zlib import crc32

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.sglang.events.sites import call_sites
from pytest_pprank.sglang.events.types import (
    ConsensusApplied,
    ConsensusBrought,
    ConsensusLocal,
    ForwardMade,
    HandshakesDone,
)

_APPLY = (
    "every stage must apply the consensus that it receives, whatever its own state has become "
    "meanwhile (SGLang PR 31869)"
)
_NOT_READY = ("Bootstrapping",)
"""Names of SGLang's KVPoll for a room whose handshake is not done."""
_SUBSET = "consensus is what all stages are ready for: an intersection, never a union"


class Consensus(Sanitizer):
    """Checks what this stage contributes, receives and applies, and records the batches it runs."""

    name: ClassVar[str] = "consensus"

    def begin(self) -> None:
        self._local: frozenset[str] | None = None
        self._ran: list[str] = []
        self.watch.listen("init_new", self._note_forward)
        self.watch.listen("consensus_local", self._note_local)
        self.watch.listen("consensus_bring", self._check_reported)
        self.watch.listen("consensus_apply", self._check_applied)
        self.watch.listen("handshake", self._check_started)

    def evidence(self) -> dict[str, object]:
        text, own = "\n".join(self._ran), self.watch.pprank
        return {
            "role": own.instance,
            "dp_rank": own.dp_rank,
            "number": own.rank - own.role_ranks.start,
            "place": own.place_in_role,
            "count": len(self._ran),
            "hash": crc32(text.encode()),
            "last": self._ran[-1] if self._ran else "none",
        }

    def _note_forward(self, event: ForwardMade) -> None:
        # outside the event loops, as in the profiler, one stage may run what the others do not
        if event.iteration is not None:
            self._ran.append(str(event.forward))

    def _note_local(self, event: ConsensusLocal) -> None:
        self._local = event.ready

    def _check_started(self, event: HandshakesDone) -> None:
        """Check that what is started by agreement was ready here, too; it may have failed since."""
        for rid in event.rids:
            status = event.status.get(rid, "")
            if status in _NOT_READY and rid not in event.early:
                self.watch.report(
                    f"this stage starts {rid} as ready, and is not ready for it: its room is "
                    f"{status or 'unknown here'}",
                    call_sites(),
                    _SUBSET,
                )

    def _check_reported(self, event: ConsensusBrought) -> None:
        ready, local = event.ready, self._local
        self._local = None
        if ready is None or local is None:
            return
        extra = sorted(set(ready) - local)
        if extra:
            self.watch.report(
                f"this stage brings {', '.join(extra)} as ready, and is not ready for it: its own "
                f"are {', '.join(sorted(local)) or 'none'}",
                call_sites(),
                _SUBSET,
            )

    def _check_applied(self, event: ConsensusApplied) -> None:
        if event.received is None or event.applied is None:
            return
        wanted, done = set(event.received), set(event.applied)
        # The first stage may apply less than was agreed (no room); the others receive what it has
        # applied. A plain list does not contain requests that have failed.
        exact = self.watch.pprank.stage > 0 and event.tells_failed
        missing = wanted - done if exact else set()
        if missing or done - wanted:
            wrong = ", ".join(sorted(missing | (done - wanted)))
            self.watch.report(
                f"consensus received and applied differ in {wrong}: received "
                f"{sorted(wanted)}, applied {sorted(done)}",
                call_sites(),
                _APPLY,
            )
