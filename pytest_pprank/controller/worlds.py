"""Finds differences between the states that a test leaves on the ranks.

The next test of the group would fail or hang because of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pytest_pprank.protocol.messages import TestDone
from pytest_pprank.protocol.world import World
from pytest_pprank.words import plural_ranks

Worlds = Mapping[int, World]
_SHOWN_LEFT = 3
"""How many messages that a passed test has left in flight are listed one by one."""


def why_spoiled(done: Mapping[int, TestDone], left_over: Callable[[], Sequence[str]] | None) -> str:
    """Return why a group must not run another test; empty if it may, or ends without a warning.

    `left_over` returns what is still in flight between ranks; None if a rank has not finished.
    """
    reasons = {rank: it.spoiled for rank, it in sorted(done.items()) if it.spoiled}
    if reasons:
        return "; ".join(f"{plural_ranks(ranks)}: {why}" for why, ranks in _ranks_of(reasons))
    if left_over is None or any(it.world.caught for it in done.values()):
        return ""  # replaced anyway; or the test has caught an error, so no warning is needed
    if any(it.unfinished for it in done.values()) and (left := left_over()):
        more = [f"and {len(left) - _SHOWN_LEFT} more"] if len(left) > _SHOWN_LEFT else []
        return "; ".join([*left[:_SHOWN_LEFT], *more])
    if any(it.unsettled for it in done.values()):
        return ""  # an operation has failed, so the ranks may differ
    return "; ".join(differences({rank: it.world for rank, it in done.items()}))


def differences(worlds: Worlds) -> list[str]:
    """Return what differs and how to fix it, for each world of torch.distributed."""
    found: list[str] = []
    for of in sorted({world.of for world in worlds.values()}):
        own = {rank: world for rank, world in sorted(worlds.items()) if world.of == of}
        # the later checks would only show consequences of the earlier ones
        found += list(_defaults(own)) or list(_created(own)) or list(_groups(own))
        found += _environment(own)
    return found


def left_changed(done: Mapping[int, TestDone]) -> str:
    """Return which settings were restored, and on which ranks; empty for none."""
    ranks: dict[str, list[int]] = {}
    for rank, it in sorted(done.items()):
        for text in it.world.restored:
            ranks.setdefault(text, []).append(rank)
    return "; ".join(f"{text} ({plural_ranks(where)})" for text, where in ranks.items())


def _defaults(worlds: Worlds) -> Iterator[str]:
    if len({world.default for world in worlds.values()}) > 1:
        described = _describe({rank: world.default or "none" for rank, world in worlds.items()})
        yield f"the default process group is not the same on all ranks: {described}"


def _created(worlds: Worlds) -> Iterator[str]:
    counts = {rank: world.created for rank, world in worlds.items()}
    if len(set(counts.values())) > 1:
        least = min(counts.values())
        more = {r: f"{n - least} more" for r, n in counts.items() if n > least}
        few = [rank for rank, count in counts.items() if count == least]
        yield (
            f"torch.distributed has created more groups on some ranks than on {plural_ranks(few)} "
            f"({_describe(more)}): every rank must call new_group for each group, also where it is "
            "not to be in it"
        )


def _groups(worlds: Worlds) -> Iterator[str]:
    groups = {rank: world.groups for rank, world in worlds.items() if world.groups is not None}
    known = {identity: group for own in groups.values() for identity, group in own.items()}
    for identity, (label, members, _) in known.items():
        inside = {rank: groups[rank].get(identity) for rank in members if rank in groups}
        name = f"{label} of {plural_ranks(members)}"
        gone = [rank for rank, group in inside.items() if group is None]
        counts = {rank: group[2] for rank, group in inside.items() if group is not None}
        if gone:
            yield f"{name} was destroyed on {plural_ranks(gone)} alone: destroy it on all of them"
        elif len(set(counts.values())) > 1:
            described = _describe({rank: str(count) for rank, count in counts.items()})
            yield f"{name} has not had as many collectives on all of them: {described}"


def _environment(worlds: Worlds) -> Iterator[str]:
    for name in sorted({name for world in worlds.values() for name in world.environment}):
        where = [rank for rank, world in worlds.items() if name in world.environment]
        if len(where) < len(worlds):
            yield (
                f"environment variable {name} was left changed on {plural_ranks(where)} alone: "
                "put it back (monkeypatch.setenv), or change it on all ranks"
            )


def _describe(texts: Mapping[int, str]) -> str:
    return ", ".join(f"{text} on {plural_ranks(where)}" for text, where in _ranks_of(texts))


def _ranks_of(texts: Mapping[int, str]) -> list[tuple[str, list[int]]]:
    ranks: dict[str, list[int]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(rank)
    return list(ranks.items())
