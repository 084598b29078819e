"""What becomes of whole instances: they stand still and go on, or their processes are killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.disagg_instances import Instances
from pytest_pprank.sglang.driver.lockstep import LockstepDriver
from pytest_pprank.words import as_arguments

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank


class Peers:
    """Stops, resumes and kills instances: one, or without an `index` all of a role that live."""

    def __init__(self, driver: LockstepDriver, pprank: Pprank, instances: Instances) -> None:
        self._driver = driver
        self._pprank = pprank
        self._instances = instances
        self._ranks = {role.instance: role.ranks for role in pprank.sizes.roles}

    @property
    def dead(self) -> set[str]:
        """The instances that were killed."""
        return self._driver.pace.dead

    def stop(self, role: str, index: int | None) -> None:
        """Let instances stand still."""
        __tracebackhide__ = True
        for name in self._living(role, index, "stop"):
            if name in self._driver.pace.standing:
                raise UsageError(f"disagg.stop: {name} stands still already")
            self._driver.note(f"stop({as_arguments(name)})")
            self._driver.pace.standing.add(name)

    def resume(self, role: str, index: int | None) -> None:
        """Let instances go on that stand still."""
        __tracebackhide__ = True
        for name in self._living(role, index, "resume"):
            if name not in self._driver.pace.standing:
                raise UsageError(f"disagg.resume: {name} goes on")
            self._driver.note(f"resume({as_arguments(name)})")
            self._driver.pace.standing.discard(name)

    def kill(self, role: str, index: int | None) -> tuple[str, ...]:
        """Kill the processes of instances; return these, on the ranks of the others."""
        __tracebackhide__ = True
        names = self._living(role, index, "kill")
        if not {*self._ranks} - self.dead - {*names}:
            raise UsageError(f"disagg.kill: {', '.join(sorted(self.dead))} is dead; one must live")
        self._pprank.kill([rank for name in names for rank in self._ranks[name]])
        for name in names:
            self._driver.lose(name)
        return names

    def _living(self, role: str, index: int | None, call: str) -> tuple[str, ...]:
        __tracebackhide__ = True
        if not isinstance(role, str):
            raise UsageError(f"disagg.{call}: role {role!r}; allowed: 'prefill', 'decode'")
        names = self._instances.of(role, call, index)
        living = tuple(name for name in names if name not in self.dead)
        if not living:
            raise UsageError(f"disagg.{call}: {names[0] if len(names) == 1 else role} is dead")
        return living
