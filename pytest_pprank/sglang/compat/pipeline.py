"""Messages that a pipeline's event loop keeps for another microbatch or another stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_pprank.sglang.compat.scheduler import grammar_manager_of

REQUESTS, PROXIES, OUTPUTS = "send_req_work", "send_proxy_work", "send_output_work"
"""Sends that the loop waits for in its next turn; sends of requests are always under way."""


def received_too_early(scheduler: Any) -> Iterator[tuple[str, int]]:
    """Yield (kind, how many) of the messages that came and were not asked for."""
    for kind, messages in (getattr(scheduler, "_pp_tensor_dict_inbox", None) or {}).items():
        if messages:
            yield kind, len(messages)


def results_not_sent(scheduler: Any) -> int:
    """Return how many results of the last stage wait to be sent to the first one."""
    return len(getattr(scheduler, "last_rank_comm_queue", None) or ())


def open_sends(scheduler: Any, name: str) -> Any:
    """Return the sends of one kind that were not waited for; empty or None if there are none."""
    return getattr(scheduler, name, None)


def settle_sends(scheduler: Any) -> None:
    """Wait for the asynchronous sends of an event loop that has been left, as its next turn would.

    Their receives must have been issued: call this when all stages are at the same iteration.
    """
    commit = getattr(scheduler, "_pp_commit_comm_work", None)
    for name in (REQUESTS, PROXIES, OUTPUTS):
        work = open_sends(scheduler, name)
        if commit is not None and work:
            commit(work)
    settle_other_sends(scheduler)


def settle_other_sends(scheduler: Any) -> None:
    """Wait for sends of this stage that the loop waits for only at the next send of their kind.

    Their receivers have taken them in the iteration in which they were sent. They are the polls of
    prefill (``pp_sync_polls``, from 0.5.22), which wait for the next handshake, and messages of
    GrammarManager, which wait for the next request with a grammar.
    """
    queue = getattr(scheduler, "disagg_prefill_bootstrap_queue", None)
    sent = getattr(queue, "pp_poll_sync_work_list", [])
    while sent:
        sent.pop().work.wait()
    drain = getattr(grammar_manager_of(scheduler), "_drain_pp_sync_work", None)
    if drain is not None:
        drain()
