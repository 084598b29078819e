"""Compares whether all stages ran the same batches: the controller's part of `consensus`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_pprank.protocol.findings import Finding

_CURE = "all stages of a role must schedule the same requests, chunks and order from the same input"


def compare(evidence: Mapping[int, Mapping[str, Any] | None]) -> Iterator[Finding]:
    """Yield differences between the stages of one role; each DP rank has batches of its own."""
    alike: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for own in evidence.values():
        if own is not None:
            alike.setdefault((own["role"], own["dp_rank"]), {})[own["number"]] = own
    for (role, _), stages in alike.items():
        if len({(own["count"], own["hash"]) for own in stages.values()}) > 1:
            lines = [
                f"  {own['place']}: {own['count']} forwards, the last one {own['last']}"
                for _, own in sorted(stages.items())
            ]
            head = f"the stages of role {role} did not run the same forwards in the same order:"
            yield Finding("consensus", "\n".join([head, *lines]), (), _CURE)
