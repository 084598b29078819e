"""Waits for the imports that all ranks share, and says what is to be said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pytest_pprank.errors import SEE_DOCTOR, GroupError

if TYPE_CHECKING:
    from pytest_pprank.launch.client import LauncherClient
    from pytest_pprank.protocol.messages import Preloaded

PRELOAD_SECONDS = 600.0


def wait_preloaded(launcher: LauncherClient, tick: Callable[[str], None]) -> Preloaded:
    """Wait for the imports; raises GroupError with the error of one that has failed."""
    preloaded = launcher.wait_preloaded(PRELOAD_SECONDS, tick)
    for entry, why in preloaded.failures.items():
        module = entry.partition(":")[0]
        raise GroupError(f"the ranks cannot import {module}:\n{why.rstrip()}\n{SEE_DOCTOR}")
    return preloaded


def preload_warnings(
    launcher: LauncherClient, preloaded: Preloaded, kept: str, *, fresh: bool
) -> Iterator[str]:
    """Yield warnings about the launcher; `kept`: what has been said of a kept one already."""
    if launcher.kept != kept:
        yield launcher.kept
    if fresh and preloaded.reason:
        yield (
            f"worker groups are spawned, not forked, and import everything anew: {preloaded.reason}"
        )
