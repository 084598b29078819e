"""The `disagg` fixture: requests through prefill and decode, all stages of both in lockstep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import PeerError, UsageError
from pytest_pprank.oplog.record.ledger import note_out_of_band
from pytest_pprank.rank.store import LOOPBACK
from pytest_pprank.sglang.compat.disagg import AGREED, queues
from pytest_pprank.sglang.driver.control import Control
from pytest_pprank.sglang.driver.disagg_bootstrap import Bootstrap
from pytest_pprank.sglang.driver.disagg_faults import (
    Fault,
    fail_transfer,
    flaky_poll,
    late_metadata,
    late_poll,
    lose_room,
    short_deferred_release,
    slow_transfer,
)
from pytest_pprank.sglang.driver.disagg_peers import Peers
from pytest_pprank.sglang.driver.disagg_reports import late_reports, repeat_reports
from pytest_pprank.sglang.driver.disagg_side import Side, views
from pytest_pprank.sglang.driver.disagg_views import STATES, DisaggView, rids_of, view_disagg
from pytest_pprank.sglang.driver.engine import Engine
from pytest_pprank.sglang.driver.lockstep import LockstepDriver
from pytest_pprank.sglang.driver.messages import abort_request
from pytest_pprank.sglang.driver.submission import Submission
from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
from pytest_pprank.sglang.events.hook_points import HookCall, hook_points
from pytest_pprank.sglang.events.types import Forward, RoomTold
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Message, Prompt, Scheduler

ROLES = ("prefill", "decode")
_rooms = itertools.count(1000)
"""A worker group never reuses a room: a late message would reach the wrong request."""


@dataclass(frozen=True)
class _Request:
    """What SGLang's router would send to both roles."""

    of: Submission
    room: int

    def message(self, port: int, role: str) -> Message:
        meeting: dict[str, object] = {
            "bootstrap_host": LOOPBACK,
            "bootstrap_port": port,
            "bootstrap_room": self.room,
        }
        return self.of.message(role, {"role": role, **meeting})


class Disagg(Engine):
    """Drives the real event loops of prefill and decode; all methods are calls of all ranks.

    As `Engine` (which explains iterations and divergence), with two roles. A request goes to both,
    as SGLang's router would send it, and `results` are what decode has produced. In each iteration
    every stage of both roles does one. KV moves in threads of the transfer engine, during
    iterations and between calls.

    Attributes: `scheduler`, this rank's; `clock`; `bootstrap`, SGLang's bootstrap server; `prefill`
    and `decode`, a `Side` each.
    """

    _name = "disagg"
    _answers = "decode"
    _slack_s = 5.0

    def __init__(self, scheduler: Scheduler, pprank: Pprank) -> None:
        if pprank.role not in ROLES:
            raise UsageError("disagg: needs @pytest.mark.pprank(prefill=N, decode=M)")
        super().__init__(scheduler, pprank)
        self._stage = pprank.stage
        self._sizes = {role.name: role.stages for role in pprank.sizes.roles}
        # the larger size, so that all ranks take the same number of steps
        self._num_stages = max(self._sizes.values())
        self._to: tuple[str, ...] = ROLES
        self.prefill, self.decode = (Side(name, self._driver) for name in ROLES)
        self._peers = Peers(self._driver, pprank)
        self._requests: dict[str, _Request] = {}
        self._faults: list[Fault] = []
        self._abandoned = ""
        self._queues: dict[str, tuple[str, ...]] = {}
        self._driver.at_top.append(self._at_top)
        self.bootstrap = Bootstrap(scheduler, pprank, self._driver.meet)
        self._end_notes = hook_points.listen("room_told", _note_reported_room)

    def _make_driver(self, pprank: Pprank) -> LockstepDriver:
        return LockstepDriver(self.scheduler, pprank, view_disagg)

    @property
    def stages(self) -> tuple[DisaggView, ...]:
        """What each stage of both roles held after the last step; the same on all ranks."""
        return views(self._driver)

    @property
    def prefill_stages(self) -> int:
        """Number of prefill's pipeline stages."""
        return self._sizes["prefill"]

    @property
    def decode_stages(self) -> int:
        """Number of decode's pipeline stages."""
        return self._sizes["decode"]

    def submit(
        self,
        prompt: Prompt,
        max_new_tokens: int = 8,
        *,
        to: str | Sequence[str] = ROLES,
        **options: Any,
    ) -> str:
        """Send one request to both roles, or to the one named by `to`; returns its id.

        For the other arguments see `Engine.submit`. A request that only one role has waits until
        the other role gets it (see `forward`), or until it is aborted.
        """
        __tracebackhide__ = True
        self._to = _roles(to, "submit")
        return super().submit(prompt, max_new_tokens, **options)

    def forward(self, rid: str, to: str) -> None:
        """Send a request that only one role has to the other role."""
        __tracebackhide__ = True
        self._known(rid, "forward")
        (role,) = _roles(to, "forward")
        if rid in self.side(role).results:
            raise UsageError(f"disagg.forward: {role} has got {rid!r} already")
        self._send(self._requests[rid], (role,))

    def _submit(self, request: Submission) -> None:
        self._requests[request.rid] = _Request(request, next(_rooms))
        self._send(self._requests[request.rid], self._to)

    def _send(self, request: _Request, roles: tuple[str, ...]) -> None:
        it = request.of
        this_stage().note_room(request.room, it.rid)
        choose = self._dp_ranks.choose
        chosen = {role: choose(role, it.wanted, request.room) for role in roles}
        for role in roles:
            asked = it.asked
            if role == "decode":  # SGLang's decode returns none of a prompt
                asked = replace(asked, prompt_logprobs=False)
            self._expect(role, it, asked, chosen[role])
        port = int(self.scheduler.server_args.disaggregation_bootstrap_port)
        message = request.message(port, self._role) if self._role in roles else None
        shown = f"{it}{self._dp_ranks.words(chosen)} to {roles}"
        self._driver.send(shown, message, dp_rank=chosen.get(self._role, 0))

    def abort(
        self, rid: str | None = None, *, in_time: bool = True, role: str | Sequence[str] = ROLES
    ) -> None:
        """Send an abort of one request (None: all) to both roles or to one (see `engine.abort`)."""
        if rid is not None:
            self._known(rid, "abort")
        roles = _roles(role, "abort")
        message = abort_request(rid) if self._role in roles else None
        self._driver.send(f"abort({rid!r}) to {roles}", message)
        self._driver.note_abort(rid, roles, in_time=in_time)

    def control(
        self,
        name: str,
        /,
        *,
        role: str | Sequence[str] = ROLES,
        wait: bool = False,
        **fields: object,
    ) -> Control:
        """Send a control request to both roles or to one (see `engine.control`)."""
        __tracebackhide__ = True
        roles = _roles(role, "control")
        sizes = {each: self._ranks[each] for each in roles if each not in self._peers.dead}
        if not sizes:
            raise UsageError(f"disagg.control: {' and '.join(roles)} is dead")
        return self._control(name, sizes, fields, f" to {roles}", wait=wait)

    def state(self, rid: str) -> dict[str, tuple[str, ...]]:
        """Return the state of a request, by role and stage."""
        self._known(rid, "state")
        return {side.name: side.state(rid) for side in (self.prefill, self.decode)}

    def side(self, role: str) -> Side:
        """Return `disagg.prefill` or `disagg.decode`."""
        return {"prefill": self.prefill, "decode": self.decode}[_roles(role, "side")[0]]

    def run_until_state(
        self, rid: str, state: str, *, role: str = "decode", max_iterations: int = 1000
    ) -> None:
        """Step until `rid` is in `state` on some stage of `role`. Raises EngineStalled."""
        __tracebackhide__ = True
        if state not in STATES:
            raise UsageError(f"disagg: state {state!r}; allowed: {', '.join(STATES)}")
        side = self.side(role)
        self.run_until(lambda: state in side.state(rid), max_iterations=max_iterations)

    def abort_when(
        self, rid: str, state: str, *, at: str = "decode", role: str | Sequence[str] = ROLES
    ) -> None:
        """Step until `rid` is in `state` on some stage of the role `at`, then abort it."""
        __tracebackhide__ = True
        self.run_until_state(rid, state, role=at)
        self.abort(rid, role=role)

    # peers

    def stop(self, role: str) -> None:
        """Let the event loops of a role stand still, as if it hung in a forward, until `resume`.

        Its stages do no iteration in any call, and get nothing that is sent to them. The other role
        goes on, and so do the threads of this one: its bootstrap server, its transfer engine.
        Single stages cannot stand still: in a pipeline they wait for each other in each iteration.
        The end of the test resumes the role.
        """
        __tracebackhide__ = True
        self._peers.stop(role)

    def resume(self, role: str) -> None:
        """Let the event loops of a role that was stopped go on."""
        __tracebackhide__ = True
        self._peers.resume(role)

    def kill(self, role: str) -> None:
        """Kill the processes of a role by SIGKILL, for good; the test goes on with the other role.

        The test function ends on the ranks of the killed role. What is sent to that role from now
        on is lost, its requests no longer count as unfinished, and its bootstrap server is gone
        with prefill. `side(role).stages` is empty. The worker group is replaced after the test.
        """
        __tracebackhide__ = True
        self._peers.kill(role)
        self.bootstrap.alive = role != "prefill"

    # faults

    def slow_transfer(self, stages: Sequence[int] = (0,), iterations: int | None = None) -> Fault:
        """Delay KV transfers of these prefill stages, inside the transfer engine, by that many
        iterations, or until ``release()`` of the `Fault` that is returned.
        """
        return self._fault("prefill", stages, iterations, slow_transfer)

    def fail_transfer(
        self, stages: Sequence[int] = (0,), times: int = 1, *, torn: bool = False
    ) -> Fault:
        """Let the next `times` KV transfers of these prefill stages fail in the transfer engine.

        `torn`: it writes the first half of the memory before it fails; otherwise nothing.

        SGLang considers a decode rank dead after a transfer to it has failed, and sends it nothing
        more until it registers again. The end of the test, or ``release()``, clears that state.
        From 0.5.22 on, decode keeps the target memory of a failed transfer until a time-out of 30 s
        (SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT); in this test it is 1 s.
        """
        self._fault("decode", range(self._sizes["decode"]), None, short_deferred_release)
        return self._fault("prefill", stages, None, partial(fail_transfer, times=times, torn=torn))

    def repeat_reports(self, stages: Sequence[int] = (0,)) -> Fault:
        """Send each report of these prefill stages to decode (KV sent, or failed) twice."""
        return self._fault("prefill", stages, None, repeat_reports)

    def late_reports(self, stages: Sequence[int] = (0,)) -> Fault:
        """Keep the reports of these prefill stages to decode until ``release()`` sends them."""
        return self._fault("prefill", stages, None, late_reports)

    def late_poll(
        self, stages: Sequence[int] = (0,), iterations: int = 8, *, role: str = "decode"
    ) -> Fault:
        """Report the success of a KV transfer to these stages `iterations` late."""
        return self._fault(role, stages, None, partial(late_poll, iterations=iterations))

    def flaky_poll(self, stages: Sequence[int] = (0,), *, role: str = "decode") -> Fault:
        """Report to these stages that a KV transfer has succeeded while the stages agree on it, but
        that it is still under way when they act on it.
        """
        return self._fault(role, stages, None, flaky_poll)

    def lose_room(
        self, stages: Sequence[int] = (0,), *, role: str = "prefill", rounds: int = 1
    ) -> Fault:
        """Let each request fail on these stages when its room becomes ready, as if the other role
        aborted it at that moment.

        `rounds`: how many iterations after a stage first polls the room as ready: 1, after the
        stages have agreed on it and before they act; 0, while they are agreeing.
        """
        return self._fault(role, stages, None, partial(lose_room, rounds=rounds))

    def late_metadata(self, stages: Sequence[int] = (0,), iterations: int = 8) -> Fault:
        """Let the metadata of each request arrive on these stages of decode `iterations` after the
        report that the request's transfer is complete.
        """
        every = range(self._sizes["prefill"])
        self._fault("prefill", every, None, partial(late_metadata, iterations=lambda: 0))
        late = partial(late_metadata, iterations=lambda: iterations)
        return self._fault("decode", stages, None, late)

    def _fault(
        self,
        role: str,
        stages: Sequence[int],
        iterations: int | None,
        make: Callable[[Scheduler, Fault], None],
    ) -> Fault:
        side = _roles(role, "fault")[0]
        here = self._sizes[side]
        if not stages or any(stage not in range(here) for stage in stages):
            raise UsageError(f"disagg: stages {stages!r} of {side}; there are 0 to {here - 1}")
        plain = make.func if isinstance(make, partial) else make
        fault = Fault(iterations, plain.__name__)
        self._faults.append(fault)
        if self._role == side and self._stage in stages:
            make(self.scheduler, fault)
        return fault

    def disturb(self, make: Callable[[Scheduler, Fault], None]) -> None:
        """Let ``make(scheduler, fault)`` install a disturbance on this stage, for this test."""
        fault = Fault()
        self._faults.append(fault)
        make(self.scheduler, fault)

    def abandon(self, reason: str) -> None:
        """Leave requests and loops as they are when the test ends; replace the worker group."""
        self._abandoned = reason

    def close(self) -> list[str]:
        """End the test's requests and faults; returns the ids of requests that had to be aborted.

        A call of all ranks.
        """
        self._end_notes()
        for fault in reversed(self._faults):  # each restores what it found
            fault.end()
        if self.bootstrap.alive and not self.bootstrap.up:
            with suppress(PeerError):
                self.bootstrap.start()
        self._driver.pace.standing.clear()
        if self._abandoned:
            self._driver.abandon(self._abandoned)
            self.clock.end()
            return []
        return super().close()

    def _drain(self, operation: str, limit: int | None) -> None:
        __tracebackhide__ = True
        self._driver.pace.need_all(operation)
        super()._drain(operation, limit)

    def _at_top(self) -> None:
        """Record which requests left a queue; runs in the loop's thread after an iteration."""
        now = {name: rids_of(reqs) for name, reqs in queues(self.scheduler).items()}
        here = {rid for rids in now.values() for rid in rids}
        here.update(req.rid for req in self.scheduler.waiting_queue)
        for name, any_way in AGREED.items():
            gone = [rid for rid in self._queues.get(name, ()) if rid not in now.get(name, ())]
            if left := tuple(rid for rid in gone if any_way or rid in here):
                self._driver.moves.append(Forward(self._driver.iterations, f"left {name}", left))
        self._queues = now
        for fault in self._faults:
            fault.iteration(self._driver.iterations)


def _note_reported_room(call: HookCall) -> None:
    """Note in the ledger a stage's report to the first one, which bypasses torch.distributed."""
    event = call.event
    assert isinstance(event, RoomTold)
    note_out_of_band("PPConsensusStore", f"room {event.room} {event.status or 'gone'}")


def _roles(given: str | Sequence[str], call: str) -> tuple[str, ...]:
    roles = (given,) if isinstance(given, str) else tuple(given)
    if not roles or any(role not in ROLES for role in roles):
        raise UsageError(f"disagg.{call}: role {given!r}; allowed: 'prefill', 'decode'")
    return roles
