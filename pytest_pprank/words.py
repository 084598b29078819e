"""Phrases that several modules need."""

from __future__ import annotations

from collections.abc import Iterable


def plural_ranks(ranks: Iterable[int]) -> str:
    """Return ``rank 1`` or ``ranks 0,1``."""
    each = sorted(ranks)
    listed = ",".join(str(rank) for rank in each)
    return f"rank {listed}" if len(each) == 1 else f"ranks {listed}"


def rank_name(rank: int, role: str, stage: int, stages: int) -> str:
    """Return ``rank 1, stage 1 of 2``, or ``rank 2, decode stage 0 of 1`` where roles differ."""
    return f"rank {rank}, {'' if role == 'pp' else f'{role} '}stage {stage} of {stages}"
