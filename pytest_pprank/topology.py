"""What a worker group is keyed by: tests share a group exactly when their topologies are equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Topology:
    """`pp` pipeline stages on one kind of device, with SGLang's server args.

    `server_args` is None for tests that never touch SGLang. Its canonical text takes part in
    equality, because SGLang holds process-global state: other args need fresh processes.
    """

    pp: int
    device: str
    server_args: Mapping[str, Any] | None = field(default=None, compare=False)
    args_key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.server_args is not None:
            text = ", ".join(f"{k}={v!r}" for k, v in sorted(self.server_args.items()))
            object.__setattr__(self, "args_key", f"sglang({text})")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp

    def __str__(self) -> str:
        parts = [f"pp={self.pp}", f"device={self.device}"]
        if self.args_key not in ("", "sglang()"):
            parts.append(self.args_key)
        return " ".join(parts)
