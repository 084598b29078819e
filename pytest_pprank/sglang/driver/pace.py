"""How many iterations each role may do; one that stands still gets none.

Where a role has several instances, each counts as a role: `role` is then its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from pytest_pprank.errors import UsageError
from pytest_pprank.words import as_arguments


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
        self.need(self.standing, operation)

    def need(self, roles: Container[str], operation: str) -> None:
        """Raise UsageError if one of these roles stands still."""
        __tracebackhide__ = True
        for role in sorted(self.standing):
            if role in roles:
                raise UsageError(
                    f"{operation}: {role} stands still; call disagg.resume({as_arguments(role)}) "
                    "first"
                )

    def restart(self) -> None:
        """Record that the loops have been left, and will count iterations from 0."""
        self._total = 0
        self._missed.clear()
