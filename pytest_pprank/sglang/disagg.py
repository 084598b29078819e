"""Requests through prefill and decode, all stages of both in step: the `disagg` fixture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.disagg_views import STATES, DisaggView, view_disagg
from pytest_pprank.sglang.engine import Engine, shown_request
from pytest_pprank.sglang.engine_conductor import Conductor
from pytest_pprank.sglang.engine_messages import Result, abort_request, generate_request
from pytest_pprank.worker.store import LOOPBACK

if TYPE_CHECKING:
    from pytest_pprank.worker.handle import Pprank

ROLES = ("prefill", "decode")
_rooms = itertools.count(1000)
"""A room is never used twice by a worker group: a late message would reach the wrong request."""


class Side:
    """One role of a Disagg: what its stages hold and what its first stage has answered."""

    def __init__(self, name: str, conductor: Conductor) -> None:
        self.name = name
        self._all = conductor

    @property
    def stages(self) -> tuple[DisaggView, ...]:
        """What each stage held after the last step; the same on all ranks, empty before it."""
        views = [view for view in self._all.stages if isinstance(view, DisaggView)]
        return tuple(view for view in views if view.role == self.name)

    @property
    def results(self) -> dict[str, Result]:
        """By id, what this role has said of each request that was sent to it.

        Of prefill: at most one token, and the finish reason ``length`` when its KV has been sent.
        """
        return self._all.results[self.name]

    def state(self, rid: str) -> tuple[str, ...]:
        """Return the state of a request on each stage: bootstrapping, waiting, transferring,
        decoding, done, or ``unknown`` where it has not come yet (see `DisaggView.state`).
        """
        result = self.results.get(rid)
        absent = "done" if result is not None and result.finished else "unknown"
        return tuple(view.state(rid) or absent for view in self.stages)


class Disagg(Engine):
    """Drives the real event loops of prefill and decode; all methods are calls of all ranks.

    As `Engine` (see there for iterations and divergence), with two roles: a request goes to both,
    as SGLang's router would send it, and `results` are what decode has produced. Each iteration is
    one of every stage of both roles; KV moves in threads of the transfer engine, meanwhile and
    between two calls.

    Attributes: `scheduler`, that of this rank; `prefill` and `decode`, a `Side` each.
    """

    _name = "disagg"
    _answers = "decode"
    _slack_s = 5.0

    def __init__(self, scheduler: Any, pprank: Pprank) -> None:
        if pprank.role not in ROLES:
            raise UsageError("disagg: needs @pytest.mark.pprank(prefill=N, decode=M)")
        super().__init__(scheduler, pprank)
        self._role = pprank.role
        # the same on all ranks: calls of all ranks together must do the same steps
        self._num_stages = max(pprank.num_stages, pprank.world_size - pprank.num_stages)
        self._to: tuple[str, ...] = ROLES
        self.prefill, self.decode = (Side(name, self._all) for name in ROLES)

    def _conductor(self, pprank: Pprank) -> Conductor:
        return Conductor(self.scheduler, pprank, view_disagg)

    def submit(
        self, prompt: Any, max_new_tokens: int = 8, *, to: Any = ROLES, **options: Any
    ) -> str:
        """Send one request to both roles, or to the one named by `to`; returns its id.

        For the other arguments see `Engine.submit`. A request that only one role knows waits for
        the other one: send it there later by the same id, or abort it.
        """
        __tracebackhide__ = True
        self._to = _roles(to, "submit")
        return super().submit(prompt, max_new_tokens, **options)

    def _submit(self, rid: str, ids: list[int], params: dict[str, Any], **options: bool) -> None:
        port = int(self.scheduler.server_args.disaggregation_bootstrap_port)
        meeting: dict[str, Any] = {
            "bootstrap_host": LOOPBACK,
            "bootstrap_port": port,
            "bootstrap_room": next(_rooms),
        }
        for role in self._to:
            self._expect(role, rid, ids, params)
        request = generate_request(rid, ids, params, **options, **meeting)
        mine = self._role in self._to
        self._all.send(f"{shown_request(rid, ids)} to {self._to}", request if mine else None)

    def abort(self, rid: str | None = None, *, role: Any = ROLES) -> None:
        """Send an abort of one request (None: of all) to both roles or to one."""
        if rid is not None:
            self._known(rid, "abort")
        roles = _roles(role, "abort")
        message = abort_request(rid) if self._role in roles else None
        self._all.send(f"abort({rid!r}) to {roles}", message)

    def state(self, rid: str) -> dict[str, tuple[str, ...]]:
        """Return the state of a request by role and stage (see `Side.state`)."""
        self._known(rid, "state")
        return {side.name: side.state(rid) for side in (self.prefill, self.decode)}

    def side(self, role: str) -> Side:
        """Return the `Side` of that name."""
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

    def abort_when(self, rid: str, state: str, *, at: str = "decode", role: Any = ROLES) -> None:
        """Step until `rid` is in `state` on some stage of the role `at`, then abort it."""
        __tracebackhide__ = True
        self.run_until_state(rid, state, role=at)
        self.abort(rid, role=role)


def _roles(given: str | Sequence[str], call: str) -> tuple[str, ...]:
    roles = (given,) if isinstance(given, str) else tuple(given)
    if not roles or any(role not in ROLES for role in roles):
        raise UsageError(f"disagg.{call}: role {given!r}; allowed: 'prefill', 'decode'")
    return roles
