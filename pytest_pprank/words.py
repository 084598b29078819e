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

    `role`: the name of the role, or of one of its instances (``decode 1, stage 0 of 1``). `stage`
    and `tp`: number and count; the ranks of a stage are named if there are several:
    ``stage 1 of 2, tp 1 of 2``.
    """
    named = of_role(role, f"stage {stage[0]} of {stage[1]}")
    return named if tp[1] == 1 else f"{named}, tp {tp[0]} of {tp[1]}"


def of_role(role: str, place: str) -> str:
    """Return a place with the role, or the instance of a role, that it is in."""
    if role == "pp":
        return place
    return f"{role}, {place}" if " " in role else f"{role} {place}"


def split_instance(instance: str) -> tuple[str, int]:
    """Return role and number of an instance, given by its name: ``decode 1``, or ``decode``."""
    role, _, index = instance.partition(" ")
    return role, int(index or 0)


def as_arguments(instance: str) -> str:
    """Return the name of an instance of a role as a test writes it: ``'decode', 1``."""
    role, _, index = instance.partition(" ")
    return f"{role!r}, {index}" if index else repr(role)


def place_in_role(number: int, tp_size: int) -> str:
    """Return what to call rank `number` of a role: ``stage 1``, or ``stage 1, tp 0``."""
    stage, tp_rank = divmod(number, tp_size)
    return f"stage {stage}" if tp_size == 1 else f"stage {stage}, tp {tp_rank}"
