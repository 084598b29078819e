"""What the simulated device finds in unmodified SGLang and what is meant to be so: with a reason.

An entry allows a finding whose two sides have these places in their stacks, given as
``path of the file's end:function``; for a copy inside the forward, one place.
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


ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "managers/scheduler.py:_relay_forward_payload",
        "managers/scheduler_pp_mixin.py:_pp_prep_batch_result",
        "0.5.21, last stage: the same row of output_tokens_buf is written on the forward stream, "
        "and again on the copy stream when the tokens come back. The order is carried by messages, "
        "which the device does not follow through another rank: the last stage's send waits for "
        "launch_event, the first stage sends the tokens on, the copy stream waits for the recv",
    ),
)


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
