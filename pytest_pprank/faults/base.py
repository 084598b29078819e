"""The base of perturbations on a rank, and their context; imports neither torch nor SGLang."""

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
from pytest_pprank.trace.file import FAULT
from pytest_pprank.trace.record.trace import note

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank

BUDGET_S = 0.25
"""Maximum total delay by one perturbation on a rank in one test, in seconds."""
_LONG_SHARE, _LONG = 1 / 16, 25
"""The share of delays that are long, and how many times as long these are.

A delay that is no longer than the operating system's own scheduling delays reveals little that
would not show by itself.
"""


def stretched(amount: float) -> float:
    """Return a drawn amount (0 to 1) unchanged, except that the largest are mapped to 0 to 25."""
    rest = amount - (1 - _LONG_SHARE)
    return amount if rest < 0 else _LONG * rest / _LONG_SHARE


def _discard(_: Finding) -> None:
    pass


class Disturbance(Context):
    """The context of a perturbation in the running test.

    `dice` draws for this rank, `shared` the same on all ranks. `did` counts its actions, and
    `held_s` is the sum of its delays in seconds. `asked`: whether it was requested by name.
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
        """Draw for how many seconds to delay an event: usually 0, seldom more than `most_s`.

        See `stretched`. The total is limited by BUDGET_S.
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
        note(FAULT, self.name, {"at": event, "delay": f"{seconds * 1000:.1f} ms"})
        return seconds

    def hold(self, event: str, chance: float, most_s: float) -> None:
        """Block this thread for the drawn delay."""
        seconds = self.delay(event, chance, most_s)
        if seconds:
            time.sleep(seconds)

    def strike(self) -> None:
        """Count an action that delays nothing."""
        with self._lock:
            self.did += 1
        note(FAULT, self.name)

    def _declared(self) -> Sequence[str]:
        return row_of(self.name).hooks

    def _lacks(self, lacking: SeamMissing) -> None:
        """Turn the perturbation off because SGLang lacks something; raise if it was named."""
        if self._asked:
            raise lacking
        self.off = str(lacking)

    def __str__(self) -> str:
        """Return what it did, in words that are equal for equal actions; empty for nothing."""
        words = []
        if self.did:
            times = "once" if self.did == 1 else f"{self.did} times"
            held = f", {1000 * self.held_s:.1f} ms" if self.held_s else ""
            words.append(f"{self.name} {times}{held}")
        if self.off:
            words.append(f"{self.name}: off, {self.off}")
        return "; ".join(words)


class Perturbation(Lifecycle):
    """Base of all perturbations. Each rank has one object per test; each method may be left out.

    `disturbance`: its context in the test, with the dice it draws from. `begin` is called with the
    test's call and not earlier: what a worker group's first test sets up for all of them would
    shift the event numbers of that test.
    """

    name: ClassVar[str] = ""

    def __init__(self, disturbance: Disturbance) -> None:
        self.disturbance = disturbance
