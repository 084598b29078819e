"""What a rank tells of its world after each test: the next one finds it there."""

from __future__ import annotations

from dataclasses import dataclass, field

Groups = dict[str, tuple[str, tuple[int, ...], int]]
"""Process groups by identity (oplog.file): name in words, members, collectives so far."""


@dataclass(frozen=True)
class World:
    """Most of it must be the same on all ranks; the controller compares (controller.worlds)."""

    of: str = ""
    """The role whose torch.distributed world it is; empty where all ranks share one."""
    default: str = ""
    """The backend of the default group; empty where there is none."""
    created: int = 0
    """How often `new_group` was called in a way in which every rank must call it."""
    groups: Groups | None = field(default_factory=dict)
    """The groups this rank is in; None where nothing is known of them."""
    environment: tuple[str, ...] = ()
    """The environment variables that the test's own code has changed and left so."""
    restored: tuple[str, ...] = ()
    """In words: settings of the process that the test has left changed, and that were put back."""
    caught: bool = False
    """Whether an operation between ranks has raised, and the test has passed all the same."""
