"""What disturbs a test on its ranks: a seed, and what is drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """A seed, and the names of the perturbations that are drawn from it.

    `by_name`: whether they were chosen, and are not just what is left of all of them.
    """

    seed: int
    names: tuple[str, ...]
    by_name: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        """As ``--pprank-perturb`` takes it."""
        return f"{self.seed}:{','.join(self.names)}" if self.by_name else str(self.seed)
