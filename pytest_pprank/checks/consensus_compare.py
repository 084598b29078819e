"""Whether all stages ran the same batches: the controller's part of `consensus`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_pprank.protocol.findings import Finding

_CURE = "all stages of a role must schedule the same requests, chunks and order from the same input"


def compare(evidence: Mapping[int, Mapping[str, Any] | None]) -> Iterator[Finding]:
    """Yield what differs between the stages of one role."""
    by_role: dict[str, dict[int, Mapping[str, Any]]] = {}
    for told in evidence.values():
        if told is not None:
            by_role.setdefault(told["role"], {})[told["stage"]] = told
    for role, stages in by_role.items():
        if len({(told["count"], told["hash"]) for told in stages.values()}) > 1:
            lines = [
                f"  stage {stage}: {told['count']} forwards, the last one {told['last']}"
                for stage, told in sorted(stages.items())
            ]
            head = f"the stages of role {role} did not run the same forwards in the same order:"
            yield Finding("consensus", "\n".join([head, *lines]), (), _CURE)
