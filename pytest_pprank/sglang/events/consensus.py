"""Decodes events of what the stages of prefill and decode agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_pprank.sglang.compat.consensus import rooms_here
from pytest_pprank.sglang.compat.disagg import status_name
from pytest_pprank.sglang.compat.requests import room_of, starts_early
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events.types import (
    ConsensusApplied,
    ConsensusBrought,
    ConsensusLocal,
    HandshakesDone,
    RoomTold,
)

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.hook_points import HookCall


def consensus_local(call: HookCall) -> ConsensusLocal:
    """Decode a result of `get_rids`: the ids in the first wanted state are the ready ones."""
    found = call.result
    return ConsensusLocal(frozenset(found[0] if isinstance(found, tuple) else found))


def consensus_brought(call: HookCall) -> ConsensusBrought:
    """Decode what a stage sends on to the next one, or back to the first one."""
    return ConsensusBrought(_ready(call.result))


def consensus_applied(call: HookCall) -> ConsensusApplied:
    """Decode the consensus that a stage received, and what the stage applied."""
    received, applied = call.argument(1, "rids"), call.result
    return ConsensusApplied(_ready(received), _ready(applied), _has_failed_ones(applied))


def handshakes_done(call: HookCall) -> HandshakesDone:
    """Decode a result of `pop_bootstrapped`: requests, or a pair of these and the failed ones."""
    found = call.result
    reqs = found[0] if isinstance(found, tuple) else found
    known = rooms_here(need(need(call.args[0], "kv_manager"), "request_status"))
    return HandshakesDone(
        tuple(req.rid for req in reqs),
        {req.rid: status_name(known.get(room_of(req))) for req in reqs},
        frozenset(req.rid for req in reqs if starts_early(req)),
    )


def room_told(call: HookCall) -> RoomTold:
    """Decode a call of `_maybe_replicate_to_rank0(kind, key, value)`."""
    room, status = call.argument(2, "key"), call.argument(3, "value")
    return RoomTold(int(room), status_name(status))


def _has_failed_ones(rids: Any) -> bool:
    return bool(rids) and isinstance(rids[0], list)


def _ready(rids: Any) -> tuple[str, ...] | None:
    """Return the ready ids of ``[ready, failed]`` or of a plain list; None if `rids` is None."""
    if rids is None:
        return None
    return tuple(rids[0] if _has_failed_ones(rids) else rids)
