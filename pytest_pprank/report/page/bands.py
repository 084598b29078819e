"""Where an event is drawn: its band, and the row of the band in which it has room."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from pytest_pprank.trace.file import (
    AGREEMENT,
    BATCH,
    COPY,
    ERROR,
    FAULT,
    FINDING,
    FIXTURE,
    FORWARD,
    ITERATION,
    LOG,
    MEETING,
    MEMORY,
    OUTPUT,
    PHASE,
    STATE,
    TRANSFER,
)

MESSAGE, COLLECTIVE, STORE_WAIT = "message", "collective", "store"
"""Kinds of events that come from the ledger."""

BANDS = {
    "pins": (FINDING, FAULT, ERROR),
    "test": (PHASE, FIXTURE, MEETING),
    "loop": (ITERATION, STATE),
    "work": (FORWARD, BATCH),
    "memory": (MEMORY,),
    "messages": (MESSAGE, COLLECTIVE, STORE_WAIT),
    "transfer": (TRANSFER, AGREEMENT, COPY),
    "output": (LOG, OUTPUT),
}
"""The bands of a rank's lane, from top to bottom, with the kinds of events in each."""

BAND_OF = {kind: band for band, kinds in BANDS.items() for kind in kinds}


def rows(spans: Iterable[tuple[float, float]]) -> list[int]:
    """Return a row for each span (start, end), in order of starts: none overlaps in its row.

    Moments (start and end equal) are all in row 0.
    """
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    used = 0
    chosen = []
    for start, end in spans:
        if start == end:
            chosen.append(0)
            continue
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            row = heapq.heappop(free)
        else:
            row, used = used, used + 1
        heapq.heappush(busy, (end, row))
        chosen.append(row)
    return chosen
