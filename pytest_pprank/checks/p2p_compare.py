"""Compares messages and collectives of all ranks: the controller's part of `p2p`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_pprank.oplog.file import COLLECTIVE, CREATE, RECV, SEND, Channel
from pytest_pprank.protocol.findings import Finding

NAME = "p2p"
_PAIRS = "each send needs its recv, in the same order, with the same dtype and shape"
_SAME = "all ranks of a group must issue the same collectives in the same order"
_EVERY = (
    "every rank must call new_group for each group, in the same order, also where it is not to be "
    "in it; or only its members, with use_local_synchronization=True"
)

Evidence = list[dict[str, Any]]
"""By channel: way, group, label, peer, tag and ranks, and the operations.

`kinds`: the different operations, each with the line that issued it. `operations`: indices into
`kinds`, in issue order. `failed`: the index in `operations` of the first that raised, else None.
"""


def compare(evidence: Mapping[int, Evidence | None]) -> Iterator[Finding]:
    """Yield mismatches between the evidence of the ranks."""
    logs = {
        (rank, Channel(log["way"], log["group"], log["peer"], log["tag"])): log
        for rank, logs in evidence.items()
        for log in logs or ()
    }
    yield from _messages(logs, set(evidence))
    yield from _collectives(logs, set(evidence))
    yield from _creations(logs, set(evidence))


_Logs = Mapping[tuple[int, Channel], dict[str, Any]]


def _messages(logs: _Logs, ranks: set[int]) -> Iterator[Finding]:
    # messages to a rank that receives from any rank cannot be assigned to a recv
    anybody = {(rank, it.group) for rank, it in logs if it.way == RECV and it.peer is None}
    sends = dict.fromkeys(
        (rank, it) if it.way == SEND else (it.peer, it.counterpart(rank))
        for rank, it in logs
        if it.way in (SEND, RECV) and it.peer is not None
    )
    for source, send in sends:
        to = send.peer
        if source is None or to is None or not {source, to} <= ranks:
            continue
        if (to, send.group) in anybody:
            continue
        sent, received = logs.get((source, send)), logs.get((to, send.counterpart(source)))
        label = (sent or received or {})["label"]
        where = f"from rank {source} to rank {to} ({label}, tag {send.tag})"
        sides = {f"rank {source} sent": sent, f"rank {to} received": received}
        yield from _difference(f"messages {where}", sides, _PAIRS)


def _collectives(logs: _Logs, ranks: set[int]) -> Iterator[Finding]:
    groups = {channel: log for (_, channel), log in logs.items() if channel.way == COLLECTIVE}
    for channel, log in groups.items():
        members = log["ranks"]
        if not members or not set(members) <= ranks:
            continue
        sides = {f"rank {rank} issued": logs.get((rank, channel)) for rank in members}
        yield from _difference(f"collectives of {log['label']}", sides, _SAME)


def _creations(logs: _Logs, ranks: set[int]) -> Iterator[Finding]:
    worlds = {tuple(log["ranks"]) for (_, it), log in logs.items() if it.way == CREATE}
    for members in sorted(worlds):
        if set(members) <= ranks:
            created = Channel(CREATE, "")
            sides = {f"rank {rank} created": logs.get((rank, created)) for rank in members}
            yield from _difference("groups of torch.distributed", sides, _EVERY)


def _difference(
    what: str, sides: Mapping[str, dict[str, Any] | None], cure: str
) -> Iterator[Finding]:
    """Yield the first difference between the sides, unless an exception in the test explains it.

    That is so if an operation of one side has raised at that point or before, and the test has
    passed nevertheless.
    """
    failed = [log["failed"] for log in sides.values() if log and log.get("failed") is not None]
    ran = {side: list(_operations(log)) for side, log in sides.items()}
    for number in range(max(map(len, ran.values()))):
        found = {s: ops[number] if number < len(ops) else None for s, ops in ran.items()}
        if any(number >= each for each in failed):
            return
        if len({None if it is None else it[0] for it in found.values()}) > 1:
            lines = [
                f"  {side} {len(ran[side])}, number {number + 1}: "
                + ("none" if it is None else f"{it[0]} ({it[1]})")
                for side, it in found.items()
            ]
            head = f"{what} do not fit together{_why(found.values())}:"
            yield Finding(NAME, "\n".join([head, *lines]), (), cure)
            return


_TENSOR = re.compile(r"(?:(?P<kind>.*) of )?(?P<dtype>[a-z]\w*)(?P<rest>(?:\[|, ).*)?")


def _why(found: Iterable[tuple[str, str] | None]) -> str:
    """Return what differs, if it is the dtype or the size of one operation; else nothing."""
    seen = [_TENSOR.fullmatch(it[0]) for it in found if it is not None]
    if len(seen) < 2 or None in seen:
        return ""
    if len({it["kind"] for it in seen if it}) > 1:
        return ""
    dtypes = {it["dtype"] for it in seen if it}
    rests = {it["rest"] for it in seen if it}
    names = [name for name, found in (("dtype", dtypes), ("size", rests)) if len(found) > 1]
    return f" (the {' and the '.join(names)} differ{'s' * (len(names) == 1)})" if names else ""


def _operations(log: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    return () if log is None else (log["kinds"][number] for number in log["operations"])
