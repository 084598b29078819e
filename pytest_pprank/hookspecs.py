"""Hooks that other plugins can implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank


def pytest_pprank_rank_started(pprank: Pprank) -> None:
    """Called on every rank of a fresh worker group, before its first test is collected."""
