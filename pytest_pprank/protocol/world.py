"""What a rank reports of its torch.distributed world and process after each test.

The next test of the worker group starts in this state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Groups = dict[str, tuple[str, tuple[int, ...], int]]
"""Process groups by identity (oplog.file): name in words, members, collectives so far."""


@dataclass(frozen=True)
class World:
    """The state a test has left; most of it must be the same on all ranks (controller.worlds)."""

    of: str = ""
    """The instance of a role whose torch.distributed world it is; empty if all ranks share one."""
    default: str = ""
    """The backend of the default group; empty if there is none."""
    created: int = 0
    """How many calls of `new_group` there were that every rank must make."""
    groups: Groups | None = field(default_factory=dict)
    """The groups this rank is in; None if unknown."""
    environment: tuple[str, ...] = ()
    """The environment variables that the test's own code has changed and not restored."""
    restored: tuple[str, ...] = ()
    """In words: the process settings that the test has changed and the rank has restored."""
    caught: bool = False
    """Whether an operation between ranks raised, and the test passed nevertheless."""
