"""The key of a worker group: tests share a group exactly when their topologies are equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_pprank.words import rank_name

SIZE_FIXTURE = "_pprank_size"
"""The parameter of a ranked test whose value is its `Sizes`."""


@dataclass(frozen=True)
class Role:
    """One role of a worker group, an SGLang world: `stages` ranks from rank `first` on.

    `name` is ``pp`` (prefill and decode in one), ``prefill`` or ``decode``.
    """

    name: str
    first: int
    stages: int


@dataclass(frozen=True)
class Sizes:
    """The pipeline stages of a worker group: `pp` of one role, or of prefill beside `decode`."""

    pp: int
    decode: int = 0

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles, in the order of their ranks."""
        if not self.decode:
            return (Role("pp", 0, self.pp),)
        return (Role("prefill", 0, self.pp), Role("decode", self.pp, self.decode))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp + self.decode

    @property
    def largest_role(self) -> int:
        """The largest number of stages of one role: ranks of one role cannot share a GPU."""
        return max(role.stages for role in self.roles)

    @property
    def rank_names(self) -> dict[int, str]:
        """What to call each rank: its number and its stage."""
        return {
            role.first + stage: rank_name(role.first + stage, role.name, stage, role.stages)
            for role in self.roles
            for stage in range(role.stages)
        }

    @property
    def id(self) -> str:
        """What is in the brackets of a test's id."""
        return "-".join(f"{role.name}{role.stages}" for role in self.roles)

    def __str__(self) -> str:
        return " ".join(f"{role.name}={role.stages}" for role in self.roles)


@dataclass(frozen=True)
class Topology:
    """`pp` pipeline stages on one device, with SGLang's server args.

    If `decode` is not 0, the `pp` stages are prefill's, and `decode` stages follow. `server_args`
    is None for tests that never use SGLang. Their canonical text takes part in equality: SGLang has
    process-global state, so other args need fresh processes. `gpus`: how many GPUs the group gets
    on device ``cuda``; fewer than ranks if prefill and decode share them.
    """

    pp: int
    device: str
    server_args: Mapping[str, object] | None = field(default=None, compare=False)
    decode: int = 0
    gpus: int = 0
    args_key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.server_args is not None:
            text = ", ".join(f"{k}={v!r}" for k, v in sorted(self.server_args.items()))
            object.__setattr__(self, "args_key", f"sglang({text})")

    @property
    def sizes(self) -> Sizes:
        """The pipeline stages by role."""
        return Sizes(self.pp, self.decode)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.sizes.world_size

    def __str__(self) -> str:
        parts = [str(self.sizes), f"device={self.device}"]
        if self.args_key not in ("", "sglang()"):
            parts.append(self.args_key)
        return " ".join(parts)
