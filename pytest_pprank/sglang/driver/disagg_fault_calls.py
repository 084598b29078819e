"""The faults of `disagg`: what a test calls to disturb the transfer of KV between the roles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError
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
from pytest_pprank.sglang.driver.disagg_instances import Instances
from pytest_pprank.sglang.driver.disagg_reports import late_reports, repeat_reports
from pytest_pprank.sglang.driver.engine import Engine

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler


class DisaggFaults(Engine):
    """The methods of `Disagg` that begin a fault on some stages of a role.

    The fault is on these stages of each instance of the role, or of the one with the number
    `index`. It returns a `Fault`, which a test can release; the end of the test does.
    """

    def __init__(self, scheduler: Scheduler, pprank: Pprank) -> None:
        super().__init__(scheduler, pprank)
        self._stage = pprank.stage
        self._sizes = {role.instance: role.stages for role in pprank.sizes.roles}
        self._instances = Instances(pprank.sizes, self._driver.pace.dead)
        self._faults: list[Fault] = []

    def slow_transfer(
        self,
        stages: Sequence[int] = (0,),
        iterations: int | None = None,
        *,
        index: int | None = None,
    ) -> Fault:
        """Delay KV transfers of these prefill stages, inside the transfer engine, by that many
        iterations, or until ``release()`` of the `Fault` that is returned.
        """
        return self._fault(("prefill", index), stages, slow_transfer, iterations)

    def fail_transfer(
        self,
        stages: Sequence[int] = (0,),
        times: int = 1,
        *,
        torn: bool = False,
        index: int | None = None,
    ) -> Fault:
        """Let the next `times` KV transfers of these prefill stages fail in the transfer engine.

        `torn`: it writes the first half of the memory before it fails; otherwise nothing.

        SGLang considers a decode rank dead after a transfer to it has failed, and sends it nothing
        more until it registers again. The end of the test, or ``release()``, clears that state.
        From 0.5.22 on, decode keeps the target memory of a failed transfer until a time-out of 30 s
        (SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT); in this test it is 1 s.
        """
        self._fault(("decode", None), None, short_deferred_release)
        make = partial(fail_transfer, times=times, torn=torn)
        return self._fault(("prefill", index), stages, make)

    def repeat_reports(self, stages: Sequence[int] = (0,), *, index: int | None = None) -> Fault:
        """Send each report of these prefill stages to decode (KV sent, or failed) twice."""
        return self._fault(("prefill", index), stages, repeat_reports)

    def late_reports(self, stages: Sequence[int] = (0,), *, index: int | None = None) -> Fault:
        """Keep the reports of these prefill stages to decode until ``release()`` sends them."""
        return self._fault(("prefill", index), stages, late_reports)

    def late_poll(
        self,
        stages: Sequence[int] = (0,),
        iterations: int = 8,
        *,
        role: str = "decode",
        index: int | None = None,
    ) -> Fault:
        """Report the success of a KV transfer to these stages `iterations` late."""
        return self._fault((role, index), stages, partial(late_poll, iterations=iterations))

    def flaky_poll(
        self, stages: Sequence[int] = (0,), *, role: str = "decode", index: int | None = None
    ) -> Fault:
        """Report to these stages that a KV transfer has succeeded while the stages agree on it, but
        that it is still under way when they act on it.
        """
        return self._fault((role, index), stages, flaky_poll)

    def lose_room(
        self,
        stages: Sequence[int] = (0,),
        *,
        role: str = "prefill",
        rounds: int = 1,
        index: int | None = None,
    ) -> Fault:
        """Let each request fail on these stages when its room becomes ready, as if the other role
        aborted it at that moment.

        `rounds`: how many iterations after a stage first polls the room as ready: 1, after the
        stages have agreed on it and before they act; 0, while they are agreeing.
        """
        return self._fault((role, index), stages, partial(lose_room, rounds=rounds))

    def late_metadata(
        self, stages: Sequence[int] = (0,), iterations: int = 8, *, index: int | None = None
    ) -> Fault:
        """Let the metadata of each request arrive on these stages of decode `iterations` after the
        report that the request's transfer is complete.
        """
        self._fault(("prefill", None), None, partial(late_metadata, iterations=lambda: 0))
        late = partial(late_metadata, iterations=lambda: iterations)
        return self._fault(("decode", index), stages, late)

    def _fault(
        self,
        where: tuple[str, int | None],
        stages: Sequence[int] | None,
        make: Callable[[Scheduler, Fault], None],
        iterations: int | None = None,
    ) -> Fault:
        """Begin a fault on these stages (None: all) of the instances of `where`: role, number."""
        for instance in (names := self._instances.of(where[0], "fault", where[1])):
            here = self._sizes[instance]
            if stages is not None and (not stages or not {*stages} <= {*range(here)}):
                raise UsageError(
                    f"disagg: stages {stages!r} of {instance}; there are 0 to {here - 1}"
                )
        plain = make.func if isinstance(make, partial) else make
        fault = Fault(iterations, plain.__name__)
        self._faults.append(fault)
        if self._role in names and (stages is None or self._stage in stages):
            make(self.scheduler, fault)
        return fault

    def disturb(self, make: Callable[[Scheduler, Fault], None]) -> None:
        """Let ``make(scheduler, fault)`` install a disturbance on this stage, for this test."""
        fault = Fault()
        self._faults.append(fault)
        make(self.scheduler, fault)
