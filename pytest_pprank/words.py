"""Phrases that several modules need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SPANS = 3


def plural_ranks(ranks: Iterable[int]) -> str:
    """Return ``rank 1`` or ``ranks 0,1``."""
    each = sorted(ranks)
    listed = ",".join(str(rank) for rank in each)
    return f"rank {listed}" if len(each) == 1 else f"ranks {listed}"


def stage_name(role: str, **places: tuple[int, int]) -> str:
    """Return ``stage 1 of 2``, or ``decode stage 0 of 1`` where roles differ.

    `role`: the name of the role, or of one of its instances (``decode 1, stage 0 of 1``).
    `places`: number and count by name, the first one ``stage``. Of the others those are named of
    which there are several: ``stage 1 of 2, tp 1 of 2``.
    """
    named = [
        f"{name} {number} of {count}"
        for name, (number, count) in places.items()
        if name == "stage" or count > 1
    ]
    return of_role(role, ", ".join(named))


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


def ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers as half-open ranges, the way chunks are shown: ``0-64, 70-71``.

    Of more than three ranges the first three are shown.
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] += 1
        else:
            spans.append([number, number + 1])
    shown = ", ".join(f"{start}-{end}" for start, end in spans[:_SPANS])
    return shown + (", ..." if len(spans) > _SPANS else "")
