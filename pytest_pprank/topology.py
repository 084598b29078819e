"""The key of a worker group: tests share a group exactly when their topologies are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pytest_pprank.errors import UsageError
from pytest_pprank.words import fitting, place_in_role, stage_name

SIZE_FIXTURE = "_pprank_size"
"""The parameter of a ranked test whose value is its `Sizes`."""


class Shares(NamedTuple):
    """How many groups of a stage's ranks share its requests and its experts.

    `dp`: DP ranks; each has requests of its own and runs their attention (DP attention). `ep`:
    groups of which each has some of the experts (expert parallelism).
    """

    dp: int = 1
    ep: int = 1


_WHAT = ("requests", "experts")
"""What is shared by the groups of `Shares`."""


_NONE = Shares()


class Another(NamedTuple):
    """One more instance of a role, beside the first one: `stages` of `tp` ranks each."""

    role: str
    stages: int
    tp: int
    shares: Shares = _NONE


class Coordinates(NamedTuple):
    """SGLang's numbers of a rank: its pipeline stage, and its places within the stage."""

    pp: int
    tp: int = 0
    dp: int = 0
    ep: int = 0


@dataclass(frozen=True)
class Role:
    """One instance of a role, an SGLang world: `stages` of `tp` ranks each, from `first` on.

    `name` is ``pp`` (prefill and decode in one), ``prefill`` or ``decode``. The ranks of a stage
    follow each other, as in SGLang (rank = pp_rank * tp_size + tp_rank), and so do those of a DP
    rank within the stage, and those of an EP rank. `index`: its number among the `instances` of its
    role.
    """

    name: str
    first: int
    stages: int
    tp: int = 1
    shares: Shares = _NONE
    index: int = 0
    instances: int = 1

    @property
    def instance(self) -> str:
        """Its name in the worker group: ``decode``, or ``decode 1`` if there are several."""
        return self.name if self.instances == 1 else f"{self.name} {self.index}"

    @property
    def ranks(self) -> range:
        """The ranks of this role, by their numbers in the worker group."""
        return range(self.first, self.first + self.stages * self.tp)

    @property
    def entries(self) -> range:
        """The ranks of the first stage that get requests: the first one of each DP rank."""
        return self.ranks[: self.tp : self.attention_tp]

    @property
    def attention_tp(self) -> int:
        """How many ranks share the attention of the same requests."""
        return self.tp // self.shares.dp

    @property
    def counts(self) -> Coordinates:
        """How many there are of each: stages, and of a stage ranks, DP ranks and EP ranks."""
        return Coordinates(self.stages, self.tp, *self.shares)

    def place(self, rank: int) -> Coordinates:
        """Return the numbers of a rank of this role."""
        stage, tp_rank = divmod(rank - self.first, self.tp)
        dp, ep = (tp_rank * count // self.tp for count in self.shares)
        return Coordinates(stage, tp_rank, dp, ep)

    def stage_name(self, rank: int) -> str:
        """Return what to call the place of a rank of this role: ``stage 1 of 2``."""
        return stage_name(self.instance, **self._places(rank))

    def place_in_role(self, rank: int) -> str:
        """Return what to call a rank among those of this role: ``stage 1``."""
        return place_in_role(**self._places(rank))

    def _places(self, rank: int) -> dict[str, tuple[int, int]]:
        """Number and count by name; those of an EP rank follow from the others."""
        own, counts = self.place(rank), self.counts
        return {
            "stage": (own.pp, counts.pp),
            "tp": (own.tp, counts.tp),
            "dp": (own.dp, counts.dp),
        }

    def rank_name(self, rank: int) -> str:
        """Return what to call a rank of this role: its number and its place."""
        return f"rank {rank}, {self.stage_name(rank)}"


@dataclass(frozen=True)
class Sizes:
    """The pipeline stages of a worker group: `pp` of one role, or of prefill beside `decode`.

    Each stage is `tp` ranks, which share its layers (tensor parallelism), its requests and experts
    by `shares`; a stage of decode `decode_tp` ranks (0: as many as one of prefill), with
    `decode_shares` (None: those of prefill). `more`: the instances of prefill and decode beside the
    first one of each.
    """

    pp: int
    decode: int = 0
    tp: int = 1
    decode_tp: int = 0
    more: tuple[Another, ...] = ()
    shares: Shares = _NONE
    decode_shares: Shares | None = None

    @property
    def roles(self) -> tuple[Role, ...]:
        """The instances of all roles, in the order of their ranks; prefill's come first."""
        if not self.decode:
            return (Role("pp", 0, self.pp, self.tp, self.shares),)
        tp, shares = self.decode_tp or self.tp, self.decode_shares
        prefill = Role("prefill", 0, self.pp, self.tp, self.shares)
        decode = Role("decode", 0, self.decode, tp, self.shares if shares is None else shares)
        return _in_order([prefill, *self._others("prefill"), decode, *self._others("decode")])

    def _others(self, name: str) -> Iterator[Role]:
        own = (each for each in self.more if each.role == name)
        yield from (Role(name, 0, each.stages, each.tp, each.shares) for each in own)

    def instances(self, name: str) -> tuple[Role, ...]:
        """Return the instances of a role."""
        return tuple(role for role in self.roles if role.name == name)

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """The numbers of stages of each instance of prefill with each one of decode."""
        for prefill in self.instances("prefill"):
            yield from ((prefill.stages, each.stages) for each in self.instances("decode"))

    def check(self) -> None:
        """Raise UsageError unless the ranks of each stage can share requests and experts."""
        for role in self.roles:
            of_role = "" if role.name == "pp" else f" of {role.name}"
            for (name, count), what in zip(role.shares._asdict().items(), _WHAT, strict=True):
                if role.tp % count:
                    raise UsageError(
                        f"{name}={count}, tp={role.tp}: the ranks of a stage{of_role} (--tp-size N "
                        f"or @pytest.mark.pprank(tp=N)) cannot form {count} groups that share its "
                        f"{what}; allowed with tp={role.tp}: {fitting(role.tp)}"
                    )

    def role_of(self, rank: int) -> Role:
        """Return the instance that a rank belongs to."""
        return next(role for role in self.roles if rank in role.ranks)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return sum(len(role.ranks) for role in self.roles)

    @property
    def largest_role(self) -> int:
        """The largest number of ranks of one role, which cannot share a GPU."""
        return max(len(role.ranks) for role in self.roles)

    @property
    def rank_names(self) -> dict[int, str]:
        """What to call each rank: its number and its stage."""
        return {rank: role.rank_name(rank) for role in self.roles for rank in role.ranks}

    @property
    def _words(self) -> Iterator[tuple[str, int]]:
        """The sizes with their names; those within a stage only where there are several."""
        counts = [role.counts._asdict() for role in self.roles]
        differing = {name for name in counts[0] if len({own[name] for own in counts}) > 1}
        for role, own in zip(self.roles, counts, strict=True):
            yield role.name, role.stages
            for name, count in own.items():
                at_end = role == self.roles[-1] and count > 1
                if name != "pp" and (name in differing or at_end):
                    yield name, count

    @property
    def id(self) -> str:
        """What is in the brackets of a test's id."""
        return "-".join(f"{name}{size}" for name, size in self._words)

    def __str__(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self._words)


def _in_order(roles: Sequence[Role]) -> tuple[Role, ...]:
    """Give the instances of a group their ranks, and their numbers within each role."""
    totals = Counter(role.name for role in roles)
    numbered: list[Role] = []
    for role in roles:
        first = sum(len(before.ranks) for before in numbered)
        index = sum(before.name == role.name for before in numbered)
        numbered.append(replace(role, first=first, index=index, instances=totals[role.name]))
    return tuple(numbered)


@dataclass(frozen=True)
class Topology:
    """Pipeline stages on one device, with SGLang's server args.

    `pp`, `decode`, `tp`, `decode_tp`, `more`, `shares`, `decode_shares`: see `Sizes`. `server_args`
    is None for tests that never use SGLang. Their canonical text takes part in equality: SGLang has
    process-global state, so other args need fresh processes. `gpus`: how many GPUs the group gets
    on device ``cuda``; fewer than ranks if prefill and decode share them.
    """

    pp: int
    device: str
    server_args: Mapping[str, object] | None = field(default=None, compare=False)
    decode: int = 0
    gpus: int = 0
    tp: int = 1
    decode_tp: int = 0
    more: tuple[Another, ...] = ()
    shares: Shares = _NONE
    decode_shares: Shares | None = None
    args_key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.server_args is not None:
            text = ", ".join(f"{k}={v!r}" for k, v in sorted(self.server_args.items()))
            object.__setattr__(self, "args_key", f"sglang({text})")

    @property
    def sizes(self) -> Sizes:
        """The pipeline stages by role."""
        tp, shares = (self.tp, self.decode_tp), (self.shares, self.decode_shares)
        return Sizes(self.pp, self.decode, *tp, self.more, *shares)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.sizes.world_size

    def __str__(self) -> str:
        parts = [str(self.sizes), f"device={self.device}"]
        if self.args_key not in ("", "sglang()"):
            parts.append(self.args_key)
        return " ".join(parts)
