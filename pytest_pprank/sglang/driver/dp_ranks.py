"""Which DP rank gets a request, as SGLang's DataParallelController decides it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pytest_pprank.errors import UsageError
from pytest_pprank.topology import Role
from pytest_pprank.words import split_instance

Asked = int | Mapping[str, int] | None
"""What a test says: a DP rank, one for each role, or nothing."""


class DpRanks:
    """Chooses the DP rank of each request, by instance; 0 where one has no DP ranks.

    Without a word of the test it is SGLang's default: in turn, on prefill by the number of the
    room, from which decode knows where the KV will be.
    """

    def __init__(self, roles: Iterable[Role]) -> None:
        every = [(role.name, role.shares.dp) for role in roles]
        self._least = {role: min(dp for of, dp in every if of == role) for role, _ in every}
        """By role: a test names a rank that each instance has."""
        self._sizes = {role.instance: role.shares.dp for role in roles}
        self._turns: Counter[str] = Counter()

    def check(self, asked: Asked, call: str) -> dict[str, int]:
        """Return the DP rank for each role for which the test names one. Raises UsageError."""
        if asked is None:
            return {}
        several = {role: size for role, size in self._least.items() if size > 1}
        wanted = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(several, asked)
        allowed = ", ".join(
            (f"{role} " if len(self._least) > 1 else "") + f"0 to {size - 1}"
            for role, size in several.items()
        )
        known = bool(wanted) and wanted.keys() <= several.keys()
        if not known or not all(_is_rank(wanted[role], several[role]) for role in wanted):
            raise UsageError(
                f"{call}: dp_rank={asked!r}; allowed: "
                + (allowed or "none, the stages have no DP ranks (--dp-size N)")
            )
        return wanted

    def choose(self, instance: str, wanted: Mapping[str, int], room: int | None = None) -> int:
        """Return the DP rank of an instance for the next request; `wanted`: see `check`."""
        role, _ = split_instance(instance)
        if role in wanted:
            return wanted[role]
        if role == "prefill" and room is not None:
            return room % self._sizes[instance]
        self._turns[instance] += 1
        return (self._turns[instance] - 1) % self._sizes[instance]

    def words(self, chosen: Mapping[str, int]) -> str:
        """Return where a request goes, in words; empty where there are no DP ranks."""
        return "".join(
            f", dp {dp_rank}" + (f" of {instance}" if len(self._sizes) > 1 else "")
            for instance, dp_rank in chosen.items()
            if self._sizes[instance] > 1
        )


def routed(role: str, wanted: Mapping[str, int]) -> dict[str, object]:
    """Return the fields of a message to `role` for the DP ranks that a test names."""
    fields: dict[str, object] = {"routed_dp_rank": wanted.get(role)}
    if role in ("prefill", "decode"):
        fields["disagg_prefill_dp_rank"] = wanted.get("prefill")
    return {name: value for name, value in fields.items() if value is not None}


def _is_rank(value: object, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in range(size)
