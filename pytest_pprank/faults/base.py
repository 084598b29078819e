"""What a perturbation is on a rank, and what it is given: no torch, no SGLang here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.errors import SeamMissing
from pytest_pprank.faults import row_of
from pytest_pprank.faults.dice import Dice
from pytest_pprank.lifecycle import Context, Lifecycle
from pytest_pprank.protocol.findings import Finding

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank

BUDGET_S = 0.25
"""How long one perturbation may hold a rank back in one test, all in all."""
_LONG_SHARE, _LONG = 1 / 16, 25
"""One in so many is so many times as long. What lasts no longer than an operating system takes to
give a process its turn brings little to light that would not show by itself.
"""


def stretched(amount: float) -> float:
    """Return a drawn amount from 0 to 1 as it is, but for the largest: these become 0 to 25."""
    rest = amount - (1 - _LONG_SHARE)
    return amount if rest < 0 else _LONG * rest / _LONG_SHARE


def _discard(_: Finding) -> None:
    pass


class Disturbance(Context):
    """A perturbation's means in the running test. `dice` are this rank's, `shared` all ranks'.

    `did` counts how often it struck, and `held_s` is how long (in seconds) it meant to hold
    something back. `asked`: whether somebody has named it.
    """

    what = "perturbation"
    cure = "leave it out for now: --pprank-perturb SEED:-{}"

    def __init__(
        self,
        name: str,
        seed: int,
        test: str,
        pprank: Pprank,
        send: Callable[[Finding], None] = _discard,
        *,
        asked: bool = False,
    ) -> None:
        super().__init__(name, pprank, send)
        self.dice = Dice(seed, test, name, pprank.rank)
        self.shared = Dice(seed, test, name)
        self.did = 0
        self.held_s = 0.0
        self._asked = asked
        self._lock = threading.Lock()

    def delay(self, event: str, chance: float, most_s: float) -> float:
        """Draw how long to hold an event back, in seconds: 0 most times, seldom more than `most_s`
        (see `stretched`).
        """
        amount = self.dice.amount(event, chance)
        if amount is None:
            return 0.0
        seconds = stretched(amount) * most_s
        with self._lock:
            if self.held_s + seconds > BUDGET_S:
                return 0.0
            self.held_s += seconds
            self.did += 1
        return seconds

    def hold(self, event: str, chance: float, most_s: float) -> None:
        """Hold this thread back for as long as is drawn."""
        seconds = self.delay(event, chance, most_s)
        if seconds:
            time.sleep(seconds)

    def strike(self) -> None:
        """Count something that was done without holding anything back."""
        with self._lock:
            self.did += 1

    def _declared(self) -> Sequence[str]:
        return row_of(self.name).hooks

    def _lacks(self, lacking: SeamMissing) -> None:
        """Leave out what needs something that SGLang lacks, unless it was asked for by name."""
        if self._asked:
            raise lacking
        self.off = str(lacking)

    def __str__(self) -> str:
        """What it did, in words that are the same whenever it did the same; empty for nothing."""
        words = []
        if self.did:
            times = "once" if self.did == 1 else f"{self.did} times"
            held = f", {1000 * self.held_s:.1f} ms" if self.held_s else ""
            words.append(f"{self.name} {times}{held}")
        if self.off:
            words.append(f"{self.name}: off, {self.off}")
        return "; ".join(words)


class Perturbation(Lifecycle):
    """Base of all. One object on each rank for each test; every method may be left as it is.

    `disturbance`: what it draws from, and has of the test. Its `begin` is called with the test's
    call. Not earlier: what a worker group's first test sets up for all of them would shift the
    numbers of the events of that test.
    """

    name: ClassVar[str] = ""

    def __init__(self, disturbance: Disturbance) -> None:
        self.disturbance = disturbance
