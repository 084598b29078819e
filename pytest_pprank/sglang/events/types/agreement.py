"""Events of what the stages agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_pprank.sglang.events.types.base import Event


@dataclass(frozen=True)
class ConsensusLocal(Event):
    """A stage has looked for which requests it is ready."""

    ready: frozenset[str]


@dataclass(frozen=True)
class ConsensusBrought(Event):
    """A stage has brought these requests to a consensus as ready; None for no consensus."""

    ready: tuple[str, ...] | None


@dataclass(frozen=True)
class ConsensusApplied(Event):
    """A stage has applied a consensus that it received; both None where there was none.

    `tells_failed`: whether what it applied has a place for requests that have failed.
    """

    received: tuple[str, ...] | None
    applied: tuple[str, ...] | None
    tells_failed: bool = False


@dataclass(frozen=True)
class HandshakesDone(Event):
    """Prefill has started these requests, because their handshake with decode is done.

    `status`: what this stage itself knows of each one's room, by request id, in the words of
    SGLang's KVPoll; empty where it knows none. `early`: those that SGLang starts before.
    """

    rids: tuple[str, ...]
    status: Mapping[str, str]
    early: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RoomTold(Event):
    """A stage of prefill is about to tell the first one of a room; `status` empty: it is gone."""

    room: int
    status: str
