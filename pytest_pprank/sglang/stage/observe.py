"""The fixture `observe`: records the calls of SGLang's hook points on this rank, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_pprank.devices.sim.untracked import untracked
from pytest_pprank.errors import UsageError
from pytest_pprank.oplog.file import NOWHERE, Site
from pytest_pprank.oplog.record.calls import thread_name
from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
from pytest_pprank.sglang.events.facts import Facts
from pytest_pprank.sglang.events.hook_points import HookCall, hook_points
from pytest_pprank.sglang.events.sites import call_sites
from pytest_pprank.sglang.stage.event_loop import iteration_of_this_thread

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank


@dataclass(frozen=True)
class Call:
    """One call of a hook point on this rank.

    `number` counts all calls of this test on this rank, from 0. `iteration`: of the event loop
    that made the call (as in ``engine.iterations``), None outside `engine`'s loops. `thread`: the
    name of its thread; for a loop's thread that of the test's thread. `stack`: the call sites,
    innermost first, without torch and this plugin.
    """

    number: int
    seam: str
    stage: int
    iteration: int | None
    thread: str
    stack: tuple[Site, ...]
    facts: Facts

    @property
    def site(self) -> Site:
        """The line that made the call."""
        return self.stack[0] if self.stack else NOWHERE

    def __str__(self) -> str:
        when = "" if self.iteration is None else f", iteration {self.iteration}"
        return f"{self.number} {self.seam} (stage {self.stage}{when}): {self.facts} at {self.site}"


class Observe:
    """Records the calls of SGLang's hook points on this rank, for one test.

    `seams`: the names of the hook points. Calls before the test, such as those of SGLang's start,
    are not included.
    """

    def __init__(self, pprank: Pprank) -> None:
        self._stage = pprank.stage
        self._calls: list[Call] = []
        self._callbacks: dict[str, list[Callable[[Call, Any], object]]] = {}
        self._lock = threading.Lock()
        self._stack = ExitStack()
        for name in hook_points.names:
            self._stack.callback(hook_points.listen(name, self._record))

    @property
    def seams(self) -> tuple[str, ...]:
        """The names of all hook points, for `calls` and `on`."""
        return hook_points.names

    def calls(self, *seams: str) -> list[Call]:
        """Return the calls of the hook points `seams` so far, in order; by default of all of them.

        Raises UsageError for a name that is not a hook point.
        """
        wanted = {hook_points.point(name).name for name in seams}
        with self._lock:
            return [call for call in self._calls if not wanted or call.seam in wanted]

    def on(self, seam: str, callback: Callable[[Call, Any], object]) -> None:
        """Call ``callback(call, subject)`` at each call of the hook point `seam` in this test.

        `subject` is SGLang's own object: the ScheduleBatch, ForwardBatch, allocator, Req (for
        request slots), KV sender or receiver; for messages the ledger's record. The callback runs
        in the thread that makes the call, and SGLang gets its exceptions. Raises UsageError for a
        name that is not a hook point.
        """
        if not callable(callback):
            raise UsageError(f"observe.on: {callback!r} cannot be called")
        self._callbacks.setdefault(hook_points.point(seam).name, []).append(callback)

    def clear(self) -> None:
        """Forget the calls so far; `number` starts again from 0."""
        with self._lock:
            self._calls.clear()

    def close(self) -> None:
        """Stop recording and restore SGLang's methods."""
        self._stack.close()

    def _record(self, hook_call: HookCall) -> None:
        __tracebackhide__ = True
        seam = hook_points.point(hook_call.point)
        with untracked():  # reading tensors must not change their order on the device
            facts = seam.facts(hook_call)
        iteration, thread, stack = iteration_of_this_thread(), thread_name(), call_sites()
        with self._lock:
            number = len(self._calls)
            call = Call(number, seam.name, self._stage, iteration, thread, stack, facts)
            self._calls.append(call)
        for callback in self._callbacks.get(seam.name, ()):
            callback(call, seam.subject(hook_call))
