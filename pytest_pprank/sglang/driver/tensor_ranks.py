"""The ranks of one stage, which share its layers, hold the same requests in the same places.

With DP attention that is so for the ranks of one DP rank; each DP rank has requests of its own.
They schedule by themselves, each from the same input, and meet in collectives of every layer: one
that has another batch, or another number of tokens, leaves the others waiting, or computes wrong
values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from pytest_pprank.sglang.driver.series import StagesDiffer
from pytest_pprank.sglang.driver.views import StageView

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler

_OWN = ("tp_rank", "rooms", "reported", "progress")
"""What ranks of a stage need not have in common: rooms change in threads of each rank."""


def with_tensor_rank(view: StageView, scheduler: Scheduler, pprank: Pprank) -> StageView:
    """Add to a view what only stages with several ranks have."""
    from pytest_pprank.sglang.stage.idle import free_tokens, request_slots

    if pprank.tp_size == 1:
        return view
    total = int(scheduler.token_to_kv_pool_allocator.size)
    memory = (total - free_tokens(scheduler), request_slots(scheduler)[0])
    return replace(
        view,
        tp_rank=pprank.tp_rank,
        tp_size=pprank.tp_size,
        dp_rank=pprank.dp_rank,
        dp_size=pprank.dp_size,
        memory=memory,
    )


def check_stages(ranks: Iterable[tuple[str, StageView]]) -> None:
    """Compare the ranks of each stage, given by role and view after the same iteration.

    Raises StagesDiffer, which names what differs on which rank.
    """
    __tracebackhide__ = True
    first: dict[tuple[str, int, int], StageView] = {}
    for role, view in ranks:
        known = first.setdefault((role, view.stage, view.dp_rank), view)
        for name in (field.name for field in fields(view) if field.name not in _OWN):
            if getattr(known, name) != getattr(view, name):
                lines = [f"{it.place}: {_shown(it, name)}" for it in (known, view)]
                head = f"the ranks of a stage differ in {_WORDS.get(name, name)}:"
                raise StagesDiffer("\n  ".join([head, *lines]))


def _shown(view: StageView, name: str) -> str:
    if name == "memory":
        return "{} KV tokens, {} request slots".format(*view.memory)
    return str(getattr(view, name) or "nothing")


_WORDS = {
    "memory": "the memory in use, with what is cached",
    "slots": "the requests of their microbatches",
    "waiting": "their waiting queue",
    "chunked": "the request in the middle of its prompt",
    "busy": "what they still hold",
    "queues": "their queues",
}
