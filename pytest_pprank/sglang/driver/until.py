"""Runs iterations of the event loops until something is so, or says that it will not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_pprank.sglang.driver.lockstep import LockstepDriver

_STALLED = 48
"""Iterations per microbatch slot without progress after which the engine counts as stalled."""


class EngineStalled(AssertionError):
    """Requests are under way, but SGLang's event loops make no progress with them."""


@dataclass(frozen=True)
class Patience:
    """How long to go on: at most `limit` iterations.

    `slack_s`: how many seconds nothing may make progress, for work in threads of its own.
    """

    num_stages: int
    limit: int
    slack_s: float


def run_until_over(
    driver: LockstepDriver,
    operation: str,
    over: Callable[[], bool],
    window: int,
    patience: Patience,
) -> None:
    """Run `window` iterations at a time until `over()`, which is the same on all ranks.

    Raises EngineStalled.
    """
    __tracebackhide__ = True
    done, quiet, before, since = 0, 0, -1, 0.0
    while not over():
        driver.advance(window, operation)
        done += window
        progress = sum(view.progress for view in driver.stages)
        quiet = quiet + window if progress == before else 0
        since = driver.clock if progress != before else since
        before = progress
        stalled = quiet >= _STALLED * patience.num_stages or done >= patience.limit
        if not over() and stalled and driver.clock - since >= patience.slack_s:
            words = f"nothing has moved for {quiet}" if quiet else f"not done after {done}"
            state = "\n".join(driver.state())
            raise EngineStalled(f"{words} iterations:\n{state}")


def enough_for(driver: LockstepDriver, num_stages: int) -> int:
    """Return more iterations than the open requests can need."""
    tokens = sum(
        len(result.prompt) + int(result.sampling.get("max_new_tokens") or 0)
        for _, result in driver.unfinished()
    )
    return (200 + 2 * tokens) * num_stages
