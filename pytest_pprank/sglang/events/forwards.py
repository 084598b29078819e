"""Describes a batch that is about to run, in terms that are equal on all stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.types import Forward

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ScheduleBatch


def forward_of(batch: ScheduleBatch, iteration: int) -> Forward:
    """Describe a ScheduleBatch that is about to run."""
    mode = need(batch, "forward_mode")
    rids = tuple(req.rid for req in batch.reqs)
    if not mode.is_extend():
        return Forward(iteration, mode.name.lower(), rids)
    lengths = zip(need(batch, "prefix_lens"), need(batch, "extend_lens"), strict=True)
    extends = tuple((int(start), int(start) + int(count)) for start, count in lengths)
    return Forward(iteration, mode.name.lower(), rids, extends)
