"""How the stages of prefill agree which requests have completed their handshake with decode.

Up to 0.5.21 the ids go round the ring of stages (``_pp_pd_get_bootstrapped_ids``, two rounds). From
0.5.22 on each stage's status of a room is replicated to the first stage (``PPConsensusStore``, ZMQ
and a thread, disaggregation/pp_consensus_store.py), and the first stage's decisions, in the order
of its queue, are sent from stage to stage (``pp_sync_polls``, disaggregation/utils.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pytest_pprank.sglang.compat.seams import need

_STORE = "sglang.srt.disaggregation.pp_consensus_store"


def by_store() -> bool:
    """Return whether this SGLang's stages of prefill agree through a PPConsensusStore."""
    return find_spec(_STORE) is not None


def store_class() -> Any:
    """Return the class PPConsensusStore; raises SeamMissing if its module does not define it."""
    return need(import_module(_STORE), "PPConsensusStore")


def is_store(status: Any) -> bool:
    """Return whether a KV manager's table of rooms is a PPConsensusStore."""
    return by_store() and isinstance(status, store_class())


def rooms_here(status: Any) -> dict[int, Any]:
    """Return this stage's own rooms and their status from a KV manager's table of rooms."""
    if not is_store(status):
        return dict(list(status.items()))  # a copy: the manager's threads write to the table
    with need(status, "_cache_lock"):
        return dict(need(status, "_local_map"))


def rooms_of_peers(status: Any) -> dict[int, dict[int, Any]]:
    """Return, by stage, the other stages' rooms that the first stage knows; empty elsewhere."""
    if not is_store(status):
        return {}
    with need(status, "_cache_lock"):
        peers: Mapping[int, Mapping[int, Any]] = need(status, "_peer_map")
        return {stage: dict(rooms) for stage, rooms in peers.items()}


def forget_rooms(status: Any) -> None:
    """Empty a KV manager's table of rooms on this stage."""
    if not is_store(status):
        status.clear()
        return
    for room in rooms_here(status):
        status.pop(room, None)
    with need(status, "_cache_lock"):
        need(status, "_peer_map").clear()


def first_message_of_an_iteration(role: str) -> str:
    """Return the name of the Scheduler method that sends first in an idle iteration.

    `role`: prefill or decode. "Idle": no request waits for a handshake. When the method is called,
    everything that the previous stage sent in its last iteration has been received.
    """
    if role == "prefill" and by_store():
        return "_pp_pd_send_consensus_release_ids"
    return "_pp_pd_send_consensus_bootstrapped_ids"
