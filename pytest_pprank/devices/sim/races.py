"""Unordered pairs of writes, kept until it is known whether their order matters.

The order of two writes matters only if bytes that both have written are read. A third write that is
ordered after both, and does not depend on the old contents, settles the pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from pytest_pprank.devices.sim.accesses import Entry, Rows, is_pending, overlap, report

if TYPE_CHECKING:
    from pytest_pprank.devices.sim.memory import Block
    from pytest_pprank.devices.sim.streams import Clock

_MOST = 64


class Race(NamedTuple):
    """Two unordered writes; `common`: the part of the second one that overlaps the first."""

    first: Entry
    second: Entry
    common: Entry


def may_not_matter(block: Block, first: Entry, second: Entry) -> bool:
    """Return whether two unordered accesses are writes whose order perhaps does not matter.

    False for memory that was freed, and for copies under way, whose values are meant to be used.
    """
    writes = first.write and second.write and first.work.blind and second.work.blind
    return writes and not first.freed and not is_pending(block, first)


def note(block: Block, first: Entry, second: Entry) -> None:
    """Keep two unordered writes until it is known whether their order matters."""
    if len(block.races) >= _MOST:
        oldest = block.races.pop(0)
        report(block, oldest.first, oldest.second)
    block.races.append(Race(first, second, _common(first, second)))


def seen(block: Block, entry: Entry, clock: Clock) -> None:
    """Report races whose outcome an access observes; drop races that it settles.

    Only accesses that are ordered after both writes of a race count.
    """
    kept = []
    for race in block.races:
        after = all(it.is_before(entry.stream_id, clock) for it in (race.first, race.second))
        if not after or not overlap(race.common, entry):
            kept.append(race)
        elif not (entry.write and entry.work.blind):
            report(block, race.first, race.second, entry)
        elif (left := _without(race.common, entry)) is not None:
            kept.append(race._replace(common=left))
    block.races = kept


def _common(first: Entry, second: Entry) -> Entry:
    """Return the part of `second` that overlaps `first`, as far as it is cheap to compute."""
    lo, hi = max(first.lo, second.lo), min(first.hi, second.hi)
    if first.rows is None or second.rows is None:
        return second._replace(lo=lo, hi=hi, rows=second.rows or first.rows)
    if not _same_grid(first.rows, second.rows):
        return second
    ids = second.rows.places()
    both = ids[torch.isin(ids, first.rows.places())]
    return second._replace(lo=lo, hi=hi, rows=second.rows._replace(ids=both))


def _without(common: Entry, entry: Entry) -> Entry | None:
    """Return the part of a race's common bytes that a write leaves; None if it is empty."""
    if entry.rows is None:
        whole = entry.lo <= common.lo and entry.hi >= common.hi
        return None if whole else common
    if common.rows is None or not _same_grid(common.rows, entry.rows):
        return common
    ids = common.rows.places()
    left = ids[~torch.isin(ids, entry.rows.places())]
    return common._replace(rows=common.rows._replace(ids=left)) if left.numel() else None


def _same_grid(one: Rows, two: Rows) -> bool:
    return one.start == two.start and one.width == two.width
