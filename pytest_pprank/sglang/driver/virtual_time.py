"""The time that SGLang's modules see in this process, which is not that of torch and pytest.

In modules of SGLang the name of the module `time`, and names of its functions, are bound to others
that read this time. Objects of `threading` exist long before a test, so waits are virtual by who
waits: those that code of SGLang begins with a time limit, on an Event or a Condition.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator

from pytest_pprank.rank.patches import patch
from pytest_pprank.sglang.stage.event_loop import iteration_of_this_thread

_NS = 10**9
TICK_NS = _NS // 512
"""Clocks begin to stand at a multiple of this, which floats hold: 300 s later is 300.0 s."""

_CLOCKS = ("time", "monotonic", "perf_counter")
_LOOK_S = 0.02
"""How often a thread that waits looks at the clocks, in real seconds: they may have been moved."""


class VirtualTime:
    """The clocks of one process: real ones, shifted; or standing. They never go back.

    Clocks that stand show a nanosecond more at each reading: SGLang divides by what has passed.
    Only the wall clock, whose floats are too coarse for that, stands still.

    A sleep of the event loop's thread, or of the test's, while the clocks stand moves them on by
    its length, as if it had slept: nobody else would. Other threads sleep and wait until the clocks
    show the end of it.
    """

    def __init__(self) -> None:
        self._shift = 0
        self._standing: dict[str, int] | None = None
        self._change = threading.RLock()

    @property
    def stands(self) -> bool:
        """Whether the clocks stand."""
        return self._standing is not None

    def read(self, clock: str) -> int:
        """Return what a clock of the module `time` shows, in nanoseconds."""
        with self._change:
            if self._standing is not None:
                self._standing[clock] += clock != "time"
                return self._standing[clock]
            return int(getattr(time, f"{clock}_ns")()) + self._shift

    def stop(self) -> None:
        """Let the clocks stand."""
        with self._change:
            if self._standing is None:
                now = {clock: self.read(clock) for clock in _CLOCKS}
                # rounded up: they never go back
                self._standing = {clock: -(-ns // TICK_NS) * TICK_NS for clock, ns in now.items()}

    def run(self) -> None:
        """Let the clocks run on from where they are."""
        with self._change:
            if self._standing is not None:
                self._shift = max(
                    self._standing[clock] - int(getattr(time, f"{clock}_ns")()) for clock in _CLOCKS
                )
                self._standing = None

    def advance(self, ns: int) -> None:
        """Move all clocks on."""
        with self._change:
            self._shift += ns
            if self._standing is not None:
                self._standing = {clock: was + ns for clock, was in self._standing.items()}

    def sleep(self, seconds: float) -> None:
        """Sleep as `time.sleep` does."""
        if seconds <= 0:
            time.sleep(seconds)
        elif self.stands and _drives():
            self.advance(int(seconds * _NS))
        else:
            for left in self._until(seconds):
                time.sleep(left)

    def wait(
        self, condition: threading.Condition, seconds: float, real: Callable[..., bool]
    ) -> bool:
        """Wait as ``condition.wait(seconds)`` does, with the lock held; `real` does it."""
        if _drives():
            notified = real(condition, seconds)
            if not notified and self.stands:
                self.advance(int(seconds * _NS))
            return notified
        # nothing is notified between two of these waits: the lock is held
        return any(real(condition, left) for left in self._until(seconds))

    def _until(self, seconds: float) -> Iterator[float]:
        """Yield short times to wait, in real seconds, until `seconds` have passed here."""
        until = self.read("monotonic") + int(seconds * _NS)
        while (left := until - self.read("monotonic")) > 0:
            yield min(left / _NS, _LOOK_S)


def _drives() -> bool:
    """Return whether this is the thread of an event loop, or of the test."""
    own = threading.current_thread() is threading.main_thread()
    return own or iteration_of_this_thread() is not None


def bind(virtual: VirtualTime, modules: Iterable[types.ModuleType]) -> Iterator[Callable[[], bool]]:
    """Bind the names of time in these modules to `virtual`; yield what undoes each."""
    others = _functions(virtual)
    module = types.ModuleType("time", time.__doc__)
    module.__dict__.update({**vars(time), **{name: new for name, (_, new) in others.items()}})
    new = {id(time): module, **{id(real): function for real, function in others.values()}}
    for owner in modules:
        for name, value in list(vars(owner).items()):
            if id(value) in new:
                yield patch(owner, name, new[id(value)])


def modules_of_sglang() -> list[types.ModuleType]:
    """Return the modules of SGLang that have been imported."""
    return [
        module
        for name, module in list(sys.modules.items())
        if (name == "sglang" or name.startswith("sglang.")) and module is not None
    ]


def virtual_waits(virtual: VirtualTime) -> Callable[[], bool]:
    """Make waits with a time limit virtual that code of SGLang begins; return what undoes it."""
    real: Callable[..., bool] = threading.Condition.wait

    def wait(self: threading.Condition, timeout: float | None = None) -> bool:
        if timeout is None or timeout <= 0 or not _begun_by_sglang(sys._getframe(1)):
            return real(self, timeout)
        return virtual.wait(self, timeout, real)

    return patch(threading.Condition, "wait", wait)


def virtual_time() -> VirtualTime:
    """Return the time of this process; from now on SGLang sees it."""
    if not _bound:
        _bound.append(virtual_waits(_of_this_process))
    # SGLang may have imported more since the last time
    _bound.extend(bind(_of_this_process, modules_of_sglang()))
    return _of_this_process


_of_this_process = VirtualTime()
_bound: list[Callable[[], bool]] = []
"""What undoes each change; used by tests only, because the clocks may not go back."""


def _begun_by_sglang(frame: types.FrameType | None) -> bool:
    """Return whether code of SGLang has called Condition.wait or, around it, Event.wait."""
    if frame is not None and frame.f_code is threading.Event.wait.__code__:
        frame = frame.f_back
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] == "sglang"


def _functions(virtual: VirtualTime) -> dict[str, tuple[object, object]]:
    """Return the functions of `time` that tell or take time, by name: real and virtual."""

    def in_seconds(clock: str) -> Callable[[], float]:
        return lambda: virtual.read(clock) / _NS

    def in_ns(clock: str) -> Callable[[], int]:
        return lambda: virtual.read(clock)

    new: dict[str, object] = {clock: in_seconds(clock) for clock in _CLOCKS}
    new |= {f"{clock}_ns": in_ns(clock) for clock in _CLOCKS}
    new["sleep"] = virtual.sleep
    return {name: (getattr(time, name), function) for name, function in new.items()}
