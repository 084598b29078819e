"""What becomes of a whole role: it stands still and goes on, or its processes are killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.lockstep import LockstepDriver

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank


class Peers:
    """Stops, resumes and kills roles."""

    def __init__(self, driver: LockstepDriver, pprank: Pprank) -> None:
        self._driver = driver
        self._pprank = pprank
        self._ranks = {role.name: role.ranks for role in pprank.sizes.roles}

    @property
    def dead(self) -> set[str]:
        """The roles that were killed."""
        return self._driver.pace.dead

    def stop(self, role: str) -> None:
        """Let a role stand still."""
        __tracebackhide__ = True
        self._check(role, "stop")
        if role in self._driver.pace.standing:
            raise UsageError(f"disagg.stop: {role} stands still already")
        self._driver.note(f"stop({role!r})")
        self._driver.pace.standing.add(role)

    def resume(self, role: str) -> None:
        """Let a role go on that stands still."""
        __tracebackhide__ = True
        self._check(role, "resume")
        if role not in self._driver.pace.standing:
            raise UsageError(f"disagg.resume: {role} goes on")
        self._driver.note(f"resume({role!r})")
        self._driver.pace.standing.discard(role)

    def kill(self, role: str) -> None:
        """Kill the processes of a role; returns on the ranks of the other one."""
        __tracebackhide__ = True
        self._check(role, "kill")
        if self.dead:
            raise UsageError(f"disagg.kill: {', '.join(self.dead)} is dead; one role must live")
        self._pprank.kill(self._ranks[role])
        self._driver.lose(role)

    def _check(self, role: str, call: str) -> None:
        __tracebackhide__ = True
        if not isinstance(role, str) or role not in self._ranks:
            raise UsageError(f"disagg.{call}: role {role!r}; allowed: 'prefill', 'decode'")
        if role in self.dead:
            raise UsageError(f"disagg.{call}: {role} is dead")
