"""The rank that this process is: the object behind the ``pprank`` fixture, without a fixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank.errors import UsageError

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank

SERVER_ARGS = pytest.StashKey[Mapping[str, Any]]()
"""Stash key, in a rank's pytest config, of the server args its worker group was started with."""

_current: Pprank | None = None


def current_rank() -> Pprank:
    """Return this process's rank; raises UsageError outside a worker group."""
    __tracebackhide__ = True
    if _current is None:
        raise UsageError(
            "this works only inside a ranked test: mark the test with @pytest.mark.pprank "
            "or request the fixture 'pprank', and run pytest with --pp-size N"
        )
    return _current


def is_rank() -> bool:
    """Return whether this process is a rank of a worker group."""
    return _current is not None


def set_current_rank(rank: Pprank | None) -> None:
    """Set what `current_rank` returns (called once, when a worker starts)."""
    global _current
    _current = rank
