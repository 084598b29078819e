"""Which perturbations a test runs under, and their seed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """A seed, and the names of the perturbations that draw from it.

    `by_name`: False if the names are simply all of them, or all that are not opt-in.
    """

    seed: int
    names: tuple[str, ...]
    by_name: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        """Return the schedule in the form that ``--pprank-perturb`` takes."""
        return f"{self.seed}:{','.join(self.names)}" if self.by_name else str(self.seed)
