"""The `disagg` fixture: requests through prefill and decode, all stages of both in lockstep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
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
from pytest_pprank.sglang.driver.disagg_fault_calls import DisaggFaults
from pytest_pprank.sglang.driver.disagg_instances import ROLES, roles_in
from pytest_pprank.sglang.driver.disagg_peers import Peers
from pytest_pprank.sglang.driver.disagg_side import Side, views
from pytest_pprank.sglang.driver.disagg_start import bootstrap_ports
from pytest_pprank.sglang.driver.disagg_views import STATES, DisaggView, rids_of, view_disagg
from pytest_pprank.sglang.driver.lockstep import LockstepDriver
from pytest_pprank.sglang.driver.messages import Result, abort_request
from pytest_pprank.sglang.driver.submission import Submission
from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
from pytest_pprank.sglang.events.hook_points import HookCall, hook_points
from pytest_pprank.sglang.events.types import Forward, RoomTold
from pytest_pprank.sglang.stage.stage import this_stage
from pytest_pprank.words import split_instance

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Message, Prompt, Scheduler

_rooms = itertools.count(1000)
"""A worker group never reuses a room: a late message would reach the wrong request."""


@dataclass(frozen=True)
class _Request:
    """What SGLang's router would send to both roles; `at`: to which instance of each role."""

    of: Submission
    room: int
    at: Mapping[str, str]

    def message(self, instance: str) -> Message:
        """Return the message to one of the instances."""
        _, prefill = split_instance(self.at["prefill"])
        meeting: dict[str, object] = {
            "bootstrap_host": LOOPBACK,
            "bootstrap_port": bootstrap_ports()[prefill],
            "bootstrap_room": self.room,
        }
        role, _ = split_instance(instance)
        return self.of.message(role, {"role": role, **meeting})


class Disagg(DisaggFaults):
    """Drives the real event loops of prefill and decode; all methods are calls of all ranks.

    As `Engine` (which explains iterations and divergence), with two roles. A request goes to both,
    as SGLang's router would send it, and `results` are what decode has produced. In each iteration
    every stage of both roles does one. KV moves in threads of the transfer engine, during
    iterations and between calls.

    A role may have several instances, numbered from 0. A request goes to a pair of them. `index`,
    where a method has it, is the number of the instance of a role that is meant; None: all.

    Attributes: `scheduler`, this rank's; `clock`; `prefills` and `decodes`, a `Side` of each
    instance; `bootstraps`, SGLang's bootstrap server of each instance of prefill; `prefill`,
    `decode` and `bootstrap`, the first of these.
    """

    _name = "disagg"
    _answers = "decode"
    _slack_s = 5.0

    def __init__(self, scheduler: Scheduler, pprank: Pprank) -> None:
        if pprank.role not in ROLES:
            raise UsageError("disagg: needs @pytest.mark.pprank(prefill=N, decode=M)")
        super().__init__(scheduler, pprank)
        # the largest size, so that all ranks take the same number of steps
        self._num_stages = max(self._sizes.values())
        self._to: tuple[str, ...] = ROLES
        self._pair: Mapping[str, str] = {}
        self.prefills, self.decodes = (
            tuple(Side(name, self._driver) for name in self._instances.of(role, ""))
            for role in ROLES
        )
        self.prefill, self.decode = self.prefills[0], self.decodes[0]
        self._peers = Peers(self._driver, pprank, self._instances)
        self._requests: dict[str, _Request] = {}
        self._abandoned = ""
        self._queues: dict[str, tuple[str, ...]] = {}
        self._driver.at_top.append(self._at_top)
        self.bootstraps = tuple(
            Bootstrap(side.name, scheduler, pprank, self._driver.meet) for side in self.prefills
        )
        self.bootstrap = self.bootstraps[0]
        self._end_notes = hook_points.listen("room_told", _note_reported_room)

    def _make_driver(self, pprank: Pprank) -> LockstepDriver:
        view = partial(view_disagg, instance=pprank.instance)
        return LockstepDriver(self.scheduler, pprank, view)

    @property
    def stages(self) -> tuple[DisaggView, ...]:
        """What each stage of both roles held after the last step; the same on all ranks."""
        return views(self._driver)

    @property
    def results(self) -> dict[str, Result]:
        """The `Result` of each request on its instance of decode, by id; the same on all ranks."""
        if len(self.decodes) == 1:
            return self.decode.results
        sides = {side.name: side.results for side in self.decodes}
        at = {rid: sides[request.at["decode"]] for rid, request in self._requests.items()}
        return {rid: results[rid] for rid, results in at.items() if rid in results}

    @property
    def prefill_stages(self) -> int:
        """Number of prefill's pipeline stages, in its first instance."""
        return self._sizes[self.prefill.name]

    @property
    def decode_stages(self) -> int:
        """Number of decode's pipeline stages, in its first instance."""
        return self._sizes[self.decode.name]

    def submit(
        self,
        prompt: Prompt,
        max_new_tokens: int = 8,
        *,
        to: str | Sequence[str] = ROLES,
        prefill: int | None = None,
        decode: int | None = None,
        **options: Any,
    ) -> str:
        """Send one request to both roles, or to the one named by `to`; returns its id.

        For the other arguments see `Engine.submit`. A request that only one role has waits until
        the other role gets it (see `forward`), or until it is aborted. `prefill` and `decode`: the
        numbers of the instances; by default the living pair that has had the fewest requests.
        """
        __tracebackhide__ = True
        self._to = roles_in(to, "submit")
        self._pair = self._instances.pair(prefill, decode)
        return super().submit(prompt, max_new_tokens, **options)

    def forward(self, rid: str, to: str) -> None:
        """Send a request that only one role has to the other role."""
        __tracebackhide__ = True
        self._known(rid, "forward")
        (role,) = roles_in(to, "forward")
        if rid in self._side_of(rid, role).results:
            raise UsageError(f"disagg.forward: {role} has got {rid!r} already")
        self._send(self._requests[rid], (role,))

    def _submit(self, request: Submission) -> None:
        self._requests[request.rid] = _Request(request, next(_rooms), self._pair)
        self._send(self._requests[request.rid], self._to)

    def _send(self, request: _Request, roles: tuple[str, ...]) -> None:
        it = request.of
        this_stage().note_room(request.room, it.rid)
        choose = self._dp_ranks.choose
        names = [request.at[role] for role in roles]
        chosen = {name: choose(name, it.wanted, request.room) for name in names}
        for role in roles:
            asked = it.asked
            if role == "decode":  # SGLang's decode returns none of a prompt
                asked = replace(asked, prompt_logprobs=False)
            self._expect(request.at[role], it, asked, chosen[request.at[role]])
        message = request.message(self._role) if self._role in chosen else None
        shown = f"{it}{self._dp_ranks.words(chosen)} to {tuple(chosen)}"
        self._driver.send(shown, message, dp_rank=chosen.get(self._role, 0))

    def abort(
        self,
        rid: str | None = None,
        *,
        in_time: bool = True,
        role: str | Sequence[str] = ROLES,
        index: int | None = None,
    ) -> None:
        """Send an abort of one request (None: all) to both roles or to one (see `engine.abort`).

        Of several instances of a role, the one that the request goes to gets it.
        """
        names = self._instances.of(role, "abort", index)
        if rid is not None:
            self._known(rid, "abort")
            if index is None:
                names = tuple(self._requests[rid].at[each] for each in roles_in(role, "abort"))
        message = abort_request(rid) if self._role in names else None
        self._driver.send(f"abort({rid!r}) to {names}", message)
        self._driver.note_abort(rid, names, in_time=in_time)

    def control(
        self,
        name: str,
        /,
        *,
        role: str | Sequence[str] = ROLES,
        index: int | None = None,
        wait: bool = False,
        **fields: object,
    ) -> Control:
        """Send a control request to both roles or to one (see `engine.control`)."""
        __tracebackhide__ = True
        names = self._instances.of(role, "control", index)
        sizes = {each: self._ranks[each] for each in names if each not in self._peers.dead}
        if not sizes:
            raise UsageError(f"disagg.control: {' and '.join(names)} is dead")
        return self._control(name, sizes, fields, f" to {names}", wait=wait)

    def state(self, rid: str) -> dict[str, tuple[str, ...]]:
        """Return the state of a request, by role and stage of the pair that it goes to."""
        self._known(rid, "state")
        return {role: self._side_of(rid, role).state(rid) for role in ROLES}

    def side(self, role: str, index: int = 0) -> Side:
        """Return `disagg.prefills[index]` or `disagg.decodes[index]`."""
        name = self._instances.one(roles_in(role, "side")[0], index, "side")
        return next(side for side in (*self.prefills, *self.decodes) if side.name == name)

    def _side_of(self, rid: str, role: str) -> Side:
        """Return the instance of a role that a request goes to."""
        return self.side(*split_instance(self._requests[rid].at[role]))

    def run_until_state(
        self, rid: str, state: str, *, role: str = "decode", max_iterations: int = 1000
    ) -> None:
        """Step until `rid` is in `state` on some stage of `role`. Raises EngineStalled."""
        __tracebackhide__ = True
        if state not in STATES:
            raise UsageError(f"disagg: state {state!r}; allowed: {', '.join(STATES)}")
        self._known(rid, "run_until_state")
        side = self._side_of(rid, roles_in(role, "run_until_state")[0])
        self.run_until(lambda: state in side.state(rid), max_iterations=max_iterations)

    def abort_when(
        self, rid: str, state: str, *, at: str = "decode", role: str | Sequence[str] = ROLES
    ) -> None:
        """Step until `rid` is in `state` on some stage of the role `at`, then abort it."""
        __tracebackhide__ = True
        self.run_until_state(rid, state, role=at)
        self.abort(rid, role=role)

    # peers

    def stop(self, role: str, index: int | None = None) -> None:
        """Let the event loops of a role stand still, as if it hung in a forward, until `resume`.

        Its stages do no iteration in any call, and get nothing that is sent to them. The other role
        goes on, and so do the threads of this one: its bootstrap server, its transfer engine.
        Single stages cannot stand still: in a pipeline they wait for each other in each iteration.
        The end of the test resumes the role.
        """
        __tracebackhide__ = True
        self._peers.stop(role, index)

    def resume(self, role: str, index: int | None = None) -> None:
        """Let the event loops of a role that was stopped go on."""
        __tracebackhide__ = True
        self._peers.resume(role, index)

    def kill(self, role: str, index: int | None = None) -> None:
        """Kill the processes of a role by SIGKILL, for good; the test goes on with the others.

        The test function ends on the killed ranks. What is sent to them from now on is lost, their
        requests no longer count as unfinished, and the bootstrap server is gone with prefill.
        `side(role).stages` is empty. The worker group is replaced after the test.
        """
        __tracebackhide__ = True
        killed = self._peers.kill(role, index)
        for bootstrap in self.bootstraps:
            bootstrap.alive = bootstrap.alive and bootstrap.instance not in killed

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
        for bootstrap in self.bootstraps:
            if bootstrap.alive and not bootstrap.up:
                with suppress(PeerError):
                    bootstrap.start()
        self._driver.pace.standing.clear()
        if self._abandoned:
            self._driver.abandon(self._abandoned)
            self.clock.end()
            return []
        return super().close()

    def _drain(self, operation: str, limit: int | None) -> None:
        __tracebackhide__ = True
        self._driver.pace.need(self._driver.with_work(), operation)
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
