"""How many iterations each role may do; a role that stands still gets none."""

from __future__ import annotations

from collections import Counter

from pytest_pprank.errors import UsageError


class Pace:
    """Grants iterations to all roles at once; equal on all ranks.

    `standing`: the roles that stand still; `dead`: those whose ranks were killed.
    """

    def __init__(self) -> None:
        self.standing: set[str] = set()
        self.dead: set[str] = set()
        self._total = 0
        self._missed: Counter[str] = Counter()
        """Iterations that a role was not granted, because it stood still."""

    def grant(self, n: int) -> None:
        """Grant `n` more iterations to each role that does not stand still."""
        self._total += n
        self._missed.update(dict.fromkeys(self.standing, n))

    def granted(self, role: str) -> int:
        """Return how many iterations the first stage of a role may have done."""
        return self._total - self._missed[role]

    def need_all(self, operation: str) -> None:
        """Raise UsageError if a role stands still, which `operation` would wait for in vain."""
        __tracebackhide__ = True
        for role in sorted(self.standing):
            raise UsageError(
                f"{operation}: {role} stands still; call disagg.resume({role!r}) first"
            )

    def restart(self) -> None:
        """Record that the loops have been left, and will count iterations from 0."""
        self._total = 0
        self._missed.clear()
