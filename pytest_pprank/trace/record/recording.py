"""Records SGLang's events, iterations, states, logs and copies in the trace of this rank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pytest_pprank.errors import SeamMissing
from pytest_pprank.lifecycle import Context, Lifecycle
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.sglang.events.places import HOOKS, passes
from pytest_pprank.trace.file import COPY, FORWARD, ITERATION, LOG, STATE, TRANSFER, Detail
from pytest_pprank.trace.record.describe import Described, describe
from pytest_pprank.trace.record.recorder import TraceRecorder

if TYPE_CHECKING:
    from pytest_pprank.devices.sim.transfers import Transfer
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.driver.engine import Engine
    from pytest_pprank.sglang.events.hook_points import HookCall
    from pytest_pprank.sglang.events.types import LogRecord

_T = TypeVar("_T")
_LEFT_OUT = ("experts", "kv_clear", "lock", "unlock")
RECORDED = tuple(place.name for place in HOOKS if place.name not in _LEFT_OUT)
"""The hook points that are recorded."""


class Recording(Context):
    """The context of a trace in the running test: what fails in it never fails the test."""

    what = "trace"

    def __init__(self, pprank: Pprank, recorder: TraceRecorder) -> None:
        super().__init__("trace", pprank, self._discard)
        self.recorder = recorder

    def listen_to_calls(self, seam: str, listener: Callable[[HookCall], object]) -> None:
        """Call `listener(call)` at each call of a hook point that SGLang has, to the test's end."""
        from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
        from pytest_pprank.sglang.events.hook_points import hook_points

        if passes(seam, self.pprank.role):
            for needed in hook_points.point(seam).needs:
                self.at_end(hook_points.listen(needed, self._note))

            def guarded(call: HookCall) -> None:
                self.guard(listener, call)

            self.at_end(hook_points.listen(seam, guarded))

    def _declared(self) -> Sequence[str]:
        return RECORDED

    def _discard(self, finding: Finding) -> None:
        del finding

    def _try(self, function: Callable[..., _T], *args: object) -> _T | None:
        try:
            return function(*args)
        except SeamMissing:
            return None  # reported by the checks that need it
        except Exception as error:
            self.recorder.fault(error)
            return None


class EventTrace(Lifecycle):
    """Records what happens on this rank in one test."""

    def __init__(self, recording: Recording, *, sglang: bool) -> None:
        self._recording = recording
        self._recorder = recording.recorder
        self._sglang = sglang
        self._iteration = 0
        self._over: int | None = None
        """The iteration that is under way, or was the last one."""
        self._polled: dict[int, str] = {}

    def begin(self) -> None:
        """Begin to listen."""
        if "pytest_pprank.devices.sim.transfers" in sys.modules:
            from pytest_pprank.devices.sim import transfers

            self._recording.at_end(transfers.listen(self._copy))
        if not self._sglang:
            return
        from pytest_pprank.sglang.events.logs import listen_to_logs

        self._recording.at_end(listen_to_logs(self._log, self._recording.guard))
        for seam in RECORDED:
            listener = self._forward if seam == "forward" else self._call
            self._recording.guard(self._recording.listen_to_calls, seam, listener)

    def loop(self, engine: Engine) -> None:
        """Record each iteration of the event loop, and the state of the stage after it."""
        from pytest_pprank.sglang.stage.snapshot import snapshot

        def ends() -> None:
            self._recorder.end(self._iteration)
            self._iteration = 0
            over = self._over
            name = "before the first iteration" if over is None else f"after iteration {over}"
            self._recorder.event(STATE, name, snapshot(engine.scheduler), iteration=over)

        engine.at_end_of_iteration(lambda: self._recording.guard(ends))

    def iteration(self, number: int) -> None:
        """Record the beginning of an iteration."""
        self._over = number
        self._iteration = self._recorder.begin(ITERATION, f"iteration {number}", iteration=number)

    def _call(self, call: HookCall) -> None:
        shown = describe(call.event)
        if shown is not None and self._is_new(shown):
            self._recorder.event(shown.kind, shown.name, shown.details, shown.stack)

    def _forward(self, call: HookCall) -> None:
        shown = describe(call.event)
        if shown is not None:
            number = self._recorder.begin(FORWARD, shown.name, shown.details, shown.stack)
            call.endings.append(lambda: self._recorder.end(number))

    def _is_new(self, shown: Described) -> bool:
        """Return False for a poll of a transfer that has answered what the last one did."""
        room, status = shown.details.get("room"), shown.details.get("status")
        if shown.kind != TRANSFER or not isinstance(room, int) or not isinstance(status, str):
            return True
        new = self._polled.get(room) != status
        self._polled[room] = status
        return new

    def _log(self, record: LogRecord) -> None:
        details: dict[str, Detail] = {"text": record.text, "level": record.level}
        if record.error:
            details["error"] = record.error
        first = record.text.partition("\n")[0]
        self._recorder.event(LOG, first, details, (record.site, *record.raised_at))

    def _copy(self, transfer: Transfer) -> None:
        shape = ",".join(map(str, transfer.shape))
        what = f"{str(transfer.dtype).removeprefix('torch.')}[{shape}]"
        details: dict[str, Detail] = {
            "direction": transfer.direction,
            "how": transfer.how.value,
            "bytes": transfer.nbytes,
            "stream": transfer.stream_id,
        }
        sites: list[str] = [f"{file}:{line} in {name}" for file, line, name in transfer.frames[:6]]
        details["at"] = sites
        self._recorder.event(COPY, f"{transfer.direction} {transfer.how.value} {what}", details)
