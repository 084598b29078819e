"""Events about what the stages agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_pprank.sglang.events.types.base import Event


@dataclass(frozen=True)
class ConsensusLocal(Event):
    """A stage has determined which requests it is ready for."""

    ready: frozenset[str]


@dataclass(frozen=True)
class ConsensusBrought(Event):
    """A stage has contributed its ready requests to a consensus; None without one."""

    ready: tuple[str, ...] | None


@dataclass(frozen=True)
class ConsensusApplied(Event):
    """A stage has applied a consensus that it received; both are None if there was none.

    `tells_failed`: whether the applied consensus lists failed requests, too.
    """

    received: tuple[str, ...] | None
    applied: tuple[str, ...] | None
    tells_failed: bool = False


@dataclass(frozen=True)
class HandshakesDone(Event):
    """Prefill has started these requests, because their handshake with decode is done.

    `status`: this stage's own status of each request's room, by request id, as a name of SGLang's
    KVPoll; empty if it knows none. `early`: requests that SGLang starts before the handshake.
    """

    rids: tuple[str, ...]
    status: Mapping[str, str]
    early: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RoomTold(Event):
    """A stage of prefill is about to report a room to the first stage; empty `status`: removed."""

    room: int
    status: str
