"""The instances of prefill and decode: those that a call means, and the pair of a request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from pytest_pprank.errors import UsageError
from pytest_pprank.topology import Sizes

ROLES = ("prefill", "decode")


def roles_in(given: str | Sequence[str], call: str) -> tuple[str, ...]:
    """Return the roles that an argument names; raises UsageError."""
    roles = (given,) if isinstance(given, str) else tuple(given)
    if not roles or any(role not in ROLES for role in roles):
        raise UsageError(f"disagg.{call}: role {given!r}; allowed: 'prefill', 'decode'")
    return roles


class Instances:
    """Knows the instances of both roles by their names (see `topology.Role.instance`).

    `dead`: the names of those that were killed; the owner of the set adds to it.
    """

    def __init__(self, sizes: Sizes, dead: Collection[str]) -> None:
        self._names = {role: [it.instance for it in sizes.instances(role)] for role in ROLES}
        self._dead = dead
        self._pairs = tuple(_in_turns(*self._names.values()))
        self._requests: Counter[tuple[str, str]] = Counter()

    def of(
        self, roles: str | Sequence[str], call: str, index: int | None = None
    ) -> tuple[str, ...]:
        """Return the instances of one or both roles: all, or those with this number.

        Raises UsageError.
        """
        found: list[str] = []
        for role in roles_in(roles, call):
            found += self._names[role] if index is None else [self.one(role, index, call)]
        return tuple(found)

    def one(self, role: str, index: int, call: str, argument: str = "index") -> str:
        """Return the instance with this number; raises UsageError, which names the argument."""
        names = self._names[role]
        if isinstance(index, bool) or not isinstance(index, int) or index not in range(len(names)):
            allowed = "0" if len(names) == 1 else f"0 to {len(names) - 1}"
            raise UsageError(
                f"disagg.{call}: {argument}={index!r}: the number of an instance of {role}; "
                f"allowed: {allowed}"
            )
        return names[index]

    def pair(self, prefill: int | None, decode: int | None) -> Mapping[str, str]:
        """Return the instances of prefill and of decode that the next request goes to, by role.

        Of the pairs with these numbers (None: any that lives, if one does) it is the one that has
        had the fewest requests.
        """
        asked = zip(ROLES, (prefill, decode), strict=True)
        prefills, decodes = (
            self._alive(role) if number is None else [self.one(role, number, "submit", role)]
            for role, number in asked
        )
        allowed = (pair for pair in self._pairs if pair[0] in prefills and pair[1] in decodes)
        chosen = min(allowed, key=lambda pair: self._requests[pair])
        self._requests[chosen] += 1
        return dict(zip(ROLES, chosen, strict=True))

    def _alive(self, role: str) -> list[str]:
        return [name for name in self._names[role] if name not in self._dead] or self._names[role]


def _in_turns(prefills: Sequence[str], decodes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each pair once; the first ones have every instance in them."""
    turns = math.lcm(len(prefills), len(decodes))
    for number in range(len(prefills) * len(decodes)):
        shift = number // turns
        yield prefills[number % len(prefills)], decodes[(number + shift) % len(decodes)]
