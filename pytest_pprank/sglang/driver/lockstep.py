"""Runs the event loops of all stages in lockstep: lets each loop run, then has all ranks meet."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_pprank.errors import PeerError, UsageError
from pytest_pprank.frames import Owner, caller
from pytest_pprank.sglang.compat.pipeline import settle_other_sends, settle_sends
from pytest_pprank.sglang.driver.aborts import AbortWatch
from pytest_pprank.sglang.driver.control import (
    ControlRecorder,
    ControlReport,
    ControlTracker,
    answers_in,
)
from pytest_pprank.sglang.driver.messages import Result
from pytest_pprank.sglang.driver.outputs import Output, add_output, outputs_of
from pytest_pprank.sglang.driver.pace import Pace
from pytest_pprank.sglang.driver.reasons import ReasonWatch, check_reasons
from pytest_pprank.sglang.driver.scheduler_hooks import (
    Attachment,
    SchedulerHook,
    enter_loop,
    exchanges_when_idle,
    leave_before_sending,
    tells_each_dp_rank,
)
from pytest_pprank.sglang.driver.series import Series, StagesDiffer
from pytest_pprank.sglang.driver.step_report import StepReport
from pytest_pprank.sglang.driver.tensor_ranks import check_stages, with_tensor_rank
from pytest_pprank.sglang.driver.views import (
    StageView,
    ending_requests,
    requests_on_stage,
    view_stage,
)
from pytest_pprank.sglang.events.forwards import forward_of
from pytest_pprank.sglang.events.sites import innermost_places
from pytest_pprank.sglang.events.types import Forward
from pytest_pprank.sglang.stage.event_loop import LoopThread
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Message, ScheduleBatch, Scheduler

_T = TypeVar("_T")


class EventLoopFailed(AssertionError):
    """SGLang's event loop raised on this stage; the cause is that exception."""


class LockstepDriver:
    """Runs the event loops of all stages; the methods are calls of all ranks together.

    Where a role has several instances, each counts as a role, and `role` is its name.
    `results`: by role and request id. `controls`: the control requests. `pace`: which roles stand
    still or are dead. `clock`: seconds, the same on all ranks after a step. `view`: makes a
    StageView of a Scheduler that is between two iterations.
    """

    def __init__(
        self, scheduler: Scheduler, pprank: Pprank, view: Callable[..., StageView] = view_stage
    ) -> None:
        self.results: dict[str, dict[str, Result]] = defaultdict(dict)
        self.controls = ControlTracker({role.instance: role for role in pprank.sizes.roles})
        self.clock = 0.0
        self._look = view
        self.ranks: tuple[StageView, ...] = ()
        self._roles: tuple[str, ...] = ()
        self.callbacks: list[Callable[[ScheduleBatch], object]] = []
        self.at_top: list[Callable[[], object]] = []
        self.at_start: list[Callable[[], object]] = []
        self.before_step: list[Callable[[], object]] = []
        self._scheduler = scheduler
        self._pprank = pprank
        self._calls: list[str] = []
        self._notes: list[str] = []
        self.pace = Pace()
        roles = (role for role in pprank.sizes.roles if role.name != "decode")
        self._chunking = {rank for role in roles for rank in role.entries}
        self._aborts = AbortWatch()
        self._reasons = ReasonWatch()
        self._ending: set[str] = set()
        self._ran = Series(pprank.world_size, "run the same batches in the same order")
        self._moved = Series(pprank.world_size, "let the same requests leave their queues")
        self._loop: LoopThread | None = None
        self._recorder = ControlRecorder(lambda: self.iterations)
        hook = SchedulerHook(self._at_top, self._at_forward)
        self._attachment = Attachment(scheduler, hook, self._recorder)

    @property
    def idle(self) -> bool:
        """Whether no stage had work after the last step, and nothing was sent since."""
        return (
            not self._calls
            and not any(self.unfinished())
            and not self.controls.open
            and not any(view.busy for view in self.ranks)
        )

    @property
    def stages(self) -> tuple[StageView, ...]:
        """The view of each stage (of each DP rank): of its first rank, with which others agree."""
        return tuple(view for view in self.ranks if view.leads)

    def unfinished(self) -> Iterator[tuple[str, Result]]:
        """Yield role and result of each request that a role has not finished and still can."""
        alive = {role: own for role, own in self.results.items() if role not in self.pace.dead}
        for role, results in alive.items():
            yield from ((role, result) for result in results.values() if not result.finished)

    @property
    def forwards(self) -> list[Forward]:
        """The forwards of this stage."""
        return self._ran.mine

    @property
    def moves(self) -> list[Forward]:
        """Requests that left this stage's queues: recorded by callbacks in `at_top`."""
        return self._moved.mine

    @property
    def _granted(self) -> int:
        return self.pace.granted(self._pprank.instance)

    @property
    def iterations(self) -> int:
        """Iterations that this stage has completed since its loop was entered."""
        return self._loop.completed if self._loop is not None else 0

    def send(
        self, call: str, message: Message | None, *, rpc: bool = False, dp_rank: int | None = None
    ) -> None:
        """Send a message to the first stage of this rank's role (None: nothing for this role).

        `call`: the request in words, compared between ranks. `rpc`: use the socket for remote
        calls. `dp_rank`: the DP rank that gets it (None: all, see `tells_each_dp_rank`).
        """
        self._calls.append(call)
        wire = self._attachment.wire
        each = dp_rank is None and tells_each_dp_rank(self._scheduler)
        mine = each or self._pprank.dp_rank == (dp_rank or 0)
        if wire is not None and message is not None and mine:
            (wire.send_call if rpc else wire.send)(message)

    def note(self, call: str) -> None:
        """Note a call that sends nothing, in words; the ranks compare them after the next step."""
        self._notes.append(call)

    def note_abort(self, rid: str | None, roles: Iterable[str], *, in_time: bool) -> None:
        """Record that an abort of requests whose id begins with `rid` (None: all) was sent."""
        for role in roles:
            results = [r for r in self.results[role].values() if r.rid.startswith(rid or "")]
            views = [view for view, of in zip(self.ranks, self._roles, strict=False) if of == role]
            self._aborts.note(role, results, views, self.pace.granted(role), in_time)

    def advance(self, n: int, operation: str) -> None:
        """Run `n` iterations on every stage, and share the results between the ranks.

        Stages of a role that stands still do none.
        """
        __tracebackhide__ = True
        for callback in self.before_step:
            callback()
        if self._loop is None:
            self._loop = LoopThread(lambda: enter_loop(self._scheduler))
            self._loop.start()
        self.pace.grant(n)
        self._run_to(max(0, self._granted - self._pprank.stage))
        view = self._look(self._scheduler, self._pprank.stage, self.iterations, len(self.forwards))
        view = with_tensor_rank(view, self._scheduler, self._pprank)
        view = replace(view, ending=tuple(sorted(self._ending)))
        wire = self._attachment.wire
        messages = [] if wire is None else wire.receive()
        report = StepReport(
            self._pprank.rank,
            self._pprank.instance,
            (*self._calls, *self._notes),
            view,
            self._ran.take_new(),
            self._moved.take_new(),
            ControlReport(self._recorder.take_new(), answers_in(messages)),
            self._reasons.take_new(),
            outputs=[output for message in messages for output in outputs_of(message)],
        )
        self._process(self.meet(operation, report))

    def meet(self, operation: str, obj: _T) -> list[_T]:
        """Have all ranks meet; return the objects of all ranks."""
        __tracebackhide__ = True
        return self._pprank.meet(operation, obj, _users_line())

    def with_work(self) -> set[str]:
        """Return the roles with requests or control requests that are not done."""
        open_there = {role for role, _ in self.unfinished()}
        open_there.update(role for control in self.controls.open for role in control.sizes)
        busy = zip(self.ranks, self._roles, strict=False)
        return open_there.union(role for view, role in busy if view.busy)

    def lose(self, role: str) -> None:
        """Record that the ranks of a role were killed: nothing more comes from them."""
        self.pace.dead.add(role)
        self.pace.standing.discard(role)
        kept = zip(self.ranks, self._roles, strict=False)
        self.ranks = tuple(view for view, of in kept if of != role)
        self._roles = tuple(of for of in self._roles if of != role)
        for control in self.controls.open:
            if role in control.sizes:
                self.controls.abandon(control)

    def leave(self, operation: str) -> None:
        """End the loops, which must be idle, all after the same iteration."""
        __tracebackhide__ = True
        self.pace.need_all(operation)
        if self._loop is None:
            return
        together = exchanges_when_idle(self._scheduler)
        if together:
            self._leave_mid_iteration()
        else:
            # idle stages do not wait for each other: those that are behind catch up
            self._run_to(self._granted)
            assert self.iterations == self._granted
        self.meet(operation, self.iterations)
        if together:
            settle_other_sends(self._scheduler)
        else:
            settle_sends(self._scheduler)
            self._loop.leave()
        self._loop, self.ranks = None, ()
        self.pace.restart()
        self._aborts.clear()
        self.controls.pauses.restart()

    def _leave_mid_iteration(self) -> None:
        """End the loop of a stage that exchanges messages in each iteration, so cannot catch up.

        Each stage begins one more iteration. In it the stage receives what the stage before sent in
        its last iteration, and leaves the loop where it would begin to send.
        """
        assert self._loop is not None
        with leave_before_sending(self._scheduler):
            self._loop.leave_inside()

    def abort_if_failed(self, operation: str) -> bool:
        """End what this rank can end alone if something has failed on any rank; return whether."""
        parked = self._loop is None or self._loop.parked
        try:
            reports = self.meet(operation, (parked, self._pprank.failed))
        except PeerError:
            reports = [(parked, True)]
        failed = any(failed for _, failed in reports)
        if all(parked for parked, _ in reports) and not failed:
            return False
        self._pprank.failed |= failed  # what is found from here on is a consequence
        if self._loop is not None and self._loop.parked:
            self._loop.leave()
        if not failed:  # else the group is replaced anyway
            self._pprank.spoil("an event loop of SGLang's has ended by itself")
        return True

    def abandon(self, reason: str) -> None:
        """End what this rank can end alone, and have the worker group replaced."""
        if self._loop is not None and self._loop.parked:
            self._loop.leave()
        self._pprank.spoil(reason)
        self.detach()

    def detach(self) -> None:
        """Restore the Scheduler."""
        self._attachment.detach()

    def state(self) -> Iterator[str]:
        """Yield, in words, what is under way on all stages."""
        for role, result in self.unfinished():
            where = f" of {role}" if role != "pp" else ""
            yield (
                f"  {result.rid}: prompt of {len(result.prompt)} tokens (forwards of it: "
                f"{result.extends or 'none'}), {len(result.token_ids)} tokens came out{where}"
            )
        yield from self.controls.state()
        for view, role in zip(self.ranks, self._roles, strict=False):
            busy = "; ".join(view.busy) or "idle"
            busy = f"stands still; {busy}" if role in self.pace.standing else busy
            yield f"  {view.place}, {view.iterations} iterations: {busy}{view.more}"

    def _run_to(self, iterations: int) -> None:
        __tracebackhide__ = True
        assert self._loop is not None
        try:
            self._loop.run_to(iterations)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
            lines = [f"SGLang's event loop failed{_place_of(error)}: {said}", *self._last()]
            raise EventLoopFailed("\n".join(lines)) from error

    def _last(self) -> Iterator[str]:
        """Yield this stage's last forward and its open requests; equal stages give equal text."""
        if self.forwards:
            yield f"  last forward: {self.forwards[-1]}"
        yield from (f"  {line}" for line in this_stage().holders())

    def _process(self, reports: list[StepReport]) -> None:
        __tracebackhide__ = True
        self._calls.clear()
        self._notes.clear()
        self.ranks = tuple(report.view for report in reports)
        self._roles = tuple(report.role for report in reports)
        if len({report.calls for report in reports}) > 1:
            lines = [
                f"  rank {report.rank}: {', '.join(report.calls) or 'nothing'}"
                for report in reports
            ]
            head = "the ranks asked the engine for different things:"
            with suppress(StagesDiffer):  # a consequence of the error that is raised here
                self._compare(reports)
            raise UsageError("\n".join([head, *lines]))
        self.clock = reports[0].clock
        for report in reports:
            for output in report.outputs:
                self._record(report.role, output)
        for report in reports:
            for forward in report.forwards if report.rank in self._chunking else ():
                self._record_extends(forward)
        self._compare(reports)
        check_reasons((report.view.place, report.changes) for report in reports)
        for report in reports:
            self.controls.record(report.role, report.view.number, report.control)
        self.controls.close()
        for report in reports:
            pauses, place = self.controls.pauses, (report.role, report.view.number)
            pauses.ran(report.role, report.view, report.forwards)
            self._aborts.resume(report.role, pauses.resumed(*place))
            if not pauses.paused(*place):
                self._aborts.ran(report.role, report.view, report.forwards)
            for output in report.outputs:
                if output.rid in self.results[report.role]:
                    self._aborts.ended(report.role, self.results[report.role][output.rid])

    def _compare(self, reports: list[StepReport]) -> None:
        __tracebackhide__ = True
        self._ran.record([(it.rank, it.view, it.role, it.forwards) for it in reports])
        self._moved.record([(it.rank, it.view, it.role, it.moves) for it in reports])
        check_stages((it.role, it.view) for it in reports)

    def _record(self, role: str, output: Output) -> None:
        result = self.results[role].get(output.rid)
        if result is None:
            return  # a request of SGLang's own, such as a health check
        add_output(result, output)

    def _record_extends(self, forward: Forward) -> None:
        for rid, extend in zip(forward.rids, forward.extends, strict=False):
            for results in self.results.values():
                if rid in results:
                    results[rid].extends.append(extend)

    # called by SGLang, in the loop's thread

    def _at_top(self) -> None:
        assert self._loop is not None
        for callback in self.at_top:
            callback()
        self._reasons.look(requests_on_stage(self._scheduler))
        self._ending.update(ending_requests(self._scheduler))
        self._loop.at_top()
        for callback in self.at_start:
            callback()

    def _at_forward(self, batch: ScheduleBatch) -> None:
        forward = forward_of(batch, self.iterations)
        self.forwards.append(forward)
        this_stage().note_forward(batch.reqs, forward.mode)
        for callback in self.callbacks:
            callback(batch)


def _place_of(error: BaseException) -> str:
    """Say where in SGLang an exception was raised, or which call of SGLang's led to it."""
    places = innermost_places(error)
    return f" in {places}" if places else ""


def _users_line() -> str:
    """Return file and line of the test that called the engine."""
    frame = caller(sys._getframe(1), Owner.PLUGIN)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
