"""Phrases that several modules need."""

from __future__ import annotations

from collections.abc import Iterable


def plural_ranks(ranks: Iterable[int]) -> str:
    """Return ``rank 1`` or ``ranks 0,1``."""
    each = sorted(ranks)
    listed = ",".join(str(rank) for rank in each)
    return f"rank {listed}" if len(each) == 1 else f"ranks {listed}"


def stage_name(role: str, stage: tuple[int, int], tp: tuple[int, int] = (0, 1)) -> str:
    """Return ``stage 1 of 2``, or ``decode stage 0 of 1`` where roles differ.

    `stage` and `tp`: number and count; the ranks of a stage are named if there are several:
    ``stage 1 of 2, tp 1 of 2``.
    """
    named = f"{'' if role == 'pp' else f'{role} '}stage {stage[0]} of {stage[1]}"
    return named if tp[1] == 1 else f"{named}, tp {tp[0]} of {tp[1]}"


def place_in_role(number: int, tp_size: int) -> str:
    """Return what to call rank `number` of a role: ``stage 1``, or ``stage 1, tp 0``."""
    stage, tp_rank = divmod(number, tp_size)
    return f"stage {stage}" if tp_size == 1 else f"stage {stage}, tp {tp_rank}"
