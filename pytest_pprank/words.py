"""Phrases that several modules need."""

from __future__ import annotations

from collections.abc import Iterable


def plural_ranks(ranks: Iterable[int]) -> str:
    """Return ``rank 1`` or ``ranks 0,1``."""
    each = sorted(ranks)
    listed = ",".join(str(rank) for rank in each)
    return f"rank {listed}" if len(each) == 1 else f"ranks {listed}"


def stage_name(role: str, **places: tuple[int, int]) -> str:
    """Return ``stage 1 of 2``, or ``decode stage 0 of 1`` where roles differ.

    `places`: number and count by name, the first one ``stage``. Of the others those are named of
    which there are several: ``stage 1 of 2, tp 1 of 2``.
    """
    named = [
        f"{name} {number} of {count}"
        for name, (number, count) in places.items()
        if name == "stage" or count > 1
    ]
    return f"{'' if role == 'pp' else f'{role} '}{', '.join(named)}"


def place_in_role(**places: tuple[int, int]) -> str:
    """Return what to call a rank among those of its role: ``stage 1``, or ``stage 1, tp 0``.

    `places`: as in `stage_name`.
    """
    named = [
        f"{name} {number}"
        for name, (number, count) in places.items()
        if name == "stage" or count > 1
    ]
    return ", ".join(named)


def fitting(whole: int) -> str:
    """Return the numbers of equal parts into which `whole` can be divided: ``1, 2, 4``."""
    return ", ".join(str(parts) for parts in range(1, whole + 1) if whole % parts == 0)
