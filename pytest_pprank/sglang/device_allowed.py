"""What the simulated device finds in unmodified SGLang and what is meant to be so: with a reason.

An entry allows a finding whose two sides have these places in their stacks, given as
``path of the file's end:function``; for a copy inside the forward, one place. Empty in SGLang
0.5.21: the stock suite has no finding there that would have to be allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Frames = Iterable[tuple[str, int, str]]


@dataclass(frozen=True)
class Allowed:
    """Findings between `first` and `second` (or of the copy at `first`) are no findings."""

    first: str
    second: str
    reason: str


ALLOWED: tuple[Allowed, ...] = ()


def allowed(first: Frames, second: Frames, among: Iterable[Allowed] = ALLOWED) -> str:
    """Return the reason why a finding is allowed, empty for one that is not."""
    one, two = list(first), list(second)
    for entry in among:
        if _has(one, entry.first) and (not entry.second or _has(two, entry.second)):
            return entry.reason
    return ""


def _has(frames: Frames, place: str) -> bool:
    file, _, function = place.rpartition(":")
    return any(path.endswith(file) and name == function for path, _, name in frames)
