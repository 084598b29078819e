"""Hooks that other plugins can implement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.registry import CheckRow, FaultRow


def pytest_pprank_rank_started(pprank: Pprank) -> None:
    """Called on every rank of a fresh worker group, before its first test is collected."""


def pytest_pprank_register_checks(config: pytest.Config) -> Sequence[CheckRow]:  # type: ignore[empty-body]
    """Return checks (sanitizers) of your own: a list of `pytest_pprank.CheckRow`.

    Called while pytest configures itself, in the controller and on every rank. Implement it in a
    plugin (``-p``, or installed), or in a conftest.py of the root folder or of a folder that pytest
    was given.
    """


def pytest_pprank_register_faults(config: pytest.Config) -> Sequence[FaultRow]:  # type: ignore[empty-body]
    """Return faults of your own for ``--pprank-perturb``: a list of `pytest_pprank.FaultRow`.

    Called like `pytest_pprank_register_checks`.
    """
