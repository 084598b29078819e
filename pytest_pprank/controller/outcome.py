"""What one test did on the ranks of a group: reports where there are any, troubles where not."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

DIVERGED = "ranks diverged"


@dataclass(frozen=True)
class Trouble:
    """Something no rank could report itself.

    `kind` is the verdict (``rank died``, ``ranks diverged``, ``hung``, ``worker group died``,
    ``worker group could not start``, ``collection failed on a rank``), `text` says who and where,
    `details` are titled blocks such as stacks.
    """

    kind: str
    text: str
    details: tuple[tuple[str, str], ...] = ()


@dataclass
class TestOutcome:
    """All that came back of one test.

    `reports` maps a rank to its phases in order, as pytest serialised them. `spoiled` says why
    the group must not run another test, and is told to the user; `unsettled` replaces it silently.
    """

    __test__ = False
    reports: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    spoiled: str = ""
    unsettled: bool = False
    seconds: float = 0.0


def describe_exit(code: int | None) -> str:
    """Say in words how a process ended; negative codes are signals, as in subprocess."""
    if code is None:
        return "it closed its connection"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"it exited with code {code}"


def plural_ranks(ranks: list[int]) -> str:
    """Return ``rank 1`` or ``ranks 0,1``."""
    listed = ",".join(str(rank) for rank in sorted(ranks))
    return f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}"
