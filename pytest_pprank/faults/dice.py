"""Pseudo-random numbers that depend on a seed and on the events so far, never on time."""

from __future__ import annotations

import threading
from collections import Counter
from hashlib import blake2b


class Dice:
    """Draws for one perturbation in one test; thread-safe.

    `place`: what the draws depend on besides the seed and the number of the event: the test, the
    rank (left out for draws that must be equal on all ranks), and the perturbation.
    """

    def __init__(self, seed: int, *place: object) -> None:
        self._key = "\0".join(map(str, (seed, *place)))
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def draw(self, event: str = "") -> float:
        """Return a number from 0 to 1 (exclusive) for the next event of this name."""
        with self._lock:
            number = self._counts[event]
            self._counts[event] += 1
        text = f"{self._key}\0{event}\0{number}".encode()
        return int.from_bytes(blake2b(text, digest_size=7).digest(), "big") / (1 << 56)

    def amount(self, event: str, chance: float) -> float | None:
        """Return a number from 0 to 1 with probability `chance`, otherwise None."""
        drawn = self.draw(event)
        return drawn / chance if drawn < chance else None
