"""What the event loop of a pipeline has in its hands for another microbatch or another stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_pprank.sglang.compat.scheduler import grammar_manager_of

REQUESTS, PROXIES, OUTPUTS = "send_req_work", "send_proxy_work", "send_output_work"
"""The sends that it waits for in its next turn; of requests some are always on their way."""


def received_too_early(scheduler: Any) -> Iterator[tuple[str, int]]:
    """Yield (kind, how many) of the messages that came and were not asked for."""
    for kind, messages in (getattr(scheduler, "_pp_tensor_dict_inbox", None) or {}).items():
        if messages:
            yield kind, len(messages)


def results_not_sent(scheduler: Any) -> int:
    """Return how many results of the last stage wait to be sent to the first one."""
    return len(getattr(scheduler, "last_rank_comm_queue", None) or ())


def open_sends(scheduler: Any, name: str) -> Any:
    """Return the sends of one kind that were not waited for; empty or None without any."""
    return getattr(scheduler, name, None)


def settle_sends(scheduler: Any) -> None:
    """Wait for the asynchronous sends of an event loop that has been left, as its next turn would.

    All their receivers must have come: call where all stages are at the same iteration.
    """
    commit = getattr(scheduler, "_pp_commit_comm_work", None)
    for name in (REQUESTS, PROXIES, OUTPUTS):
        work = open_sends(scheduler, name)
        if commit is not None and work:
            commit(work)
    settle_other_sends(scheduler)


def settle_other_sends(scheduler: Any) -> None:
    """Wait for those sends of this stage that wait for the next request of their kind, not for the
    next turn: all that it has sent of them was received in the iteration in which it was sent.

    Of prefill the polls (``pp_sync_polls``, from 0.5.22), which wait for the next handshake; those
    of GrammarManager, which wait for the next request with a grammar.
    """
    queue = getattr(scheduler, "disagg_prefill_bootstrap_queue", None)
    sent = getattr(queue, "pp_poll_sync_work_list", [])
    while sent:
        sent.pop().work.wait()
    drain = getattr(grammar_manager_of(scheduler), "_drain_pp_sync_work", None)
    if drain is not None:
        drain()
