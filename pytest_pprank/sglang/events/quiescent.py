"""The event of a Scheduler whose event loops have been left with all work done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat import requests
from pytest_pprank.sglang.events.types import Quiescent, SentPrompt
from pytest_pprank.sglang.stage.idle import idle_problems
from pytest_pprank.sglang.stage.leftovers import leftovers
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler


def quiescent(scheduler: Scheduler) -> Quiescent:
    """Return the event; its fields inspect the Scheduler when they are called."""
    return Quiescent(
        problems=lambda: idle_problems(scheduler),
        sent=lambda: list(_sent(scheduler)),
        leftovers=lambda: leftovers(scheduler),
    )


def _sent(scheduler: Scheduler) -> Iterator[SentPrompt]:
    if scheduler.token_to_kv_pool_allocator.page_size != 1:
        return
    for req in this_stage().seen_requests():
        if requests.finished_by_length(req) and requests.sender_of(req) is not None:
            tokens = requests.tokens_to_send_of(req)
            yield SentPrompt(req.rid, requests.sender_of(req), tokens)
