"""A view of one prefill or decode stage between two iterations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.disagg import (
    metadata_slots,
    queues,
    role_of,
    rooms,
    rooms_reported,
)
from pytest_pprank.sglang.driver.views import StageView, view_stage
from pytest_pprank.sglang.stage.idle import free_tokens, request_slots
from pytest_pprank.sglang.stage.stage import this_stage
from pytest_pprank.words import of_role

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, Scheduler

_SHOWN = 6
STATES = ("bootstrapping", "waiting", "transferring", "decoding", "done")


@dataclass(frozen=True)
class DisaggView(StageView):
    """One stage of an `instance` of `role` after some number of its iterations.

    In addition to StageView: `queues`, request ids by queue (see `compat.disagg.queues`; with
    ``running`` for those in a batch and ``waiting`` for SGLang's waiting queue); `kv_tokens`,
    `request_slots` and `metadata_slots`, how many are in use; `rooms`, number and status of each
    room that the KV manager knows; `reported`, on the first stage of prefill, the rooms that the
    other stages have reported, by stage (SGLang 0.5.22 on).
    """

    role: str = ""
    instance: str = ""
    queues: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kv_tokens: int = 0
    request_slots: int = 0
    metadata_slots: int = 0
    rooms: dict[int, str] = field(default_factory=dict)
    reported: dict[int, dict[int, str]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The instance and number of this stage, in words."""
        return of_role(self.instance, self.label)

    @property
    def more(self) -> str:
        """The rooms that the KV manager knows, with their states, in words."""
        shown = [f"{this_stage().room(room)} {self.rooms[room]}" for room in self.rooms]
        shown += [
            f"reported by stage {stage}: {this_stage().room(room)} {status}"
            for stage, rooms_there in self.reported.items()
            for room, status in rooms_there.items()
        ]
        return f"; {', '.join(shown[:_SHOWN])}{', ...' * (len(shown) > _SHOWN)}" if shown else ""

    @property
    def rids(self) -> frozenset[str]:
        """All requests on this stage."""
        return frozenset(rid for queue in self.queues.values() for rid in queue)

    @property
    def held(self) -> tuple[str, ...]:
        """Requests in a queue from which SGLang can remove them at once, without the other role."""
        return (*super().held, *self.queues.get("retracted", ()))

    def other_places(self, rid: str) -> tuple[str, ...]:
        """Return the names of the role's own queues that contain a request."""
        own = [name for name in self.queues if name not in ("waiting", "running")]
        return tuple(name for name in own if rid in self.queues[name])

    def transfers(self, rid: str) -> bool:
        """Return whether the KV of a request is being transferred."""
        return self.state(rid) == "transferring"

    def state(self, rid: str) -> str | None:
        """Return the state of a request on this stage; None if it is not here.

        ``bootstrapping``: the handshake of the two roles is not done (or decode has no memory for
        the request yet); ``waiting``: for its turn, or on prefill in the middle of its prompt;
        ``transferring``: its KV is being sent; ``decoding``: in a batch of decode.
        """
        for state, names in _QUEUES[self.role].items():
            if any(rid in self.queues.get(name, ()) for name in names):
                return state
        return None


_QUEUES = {
    "prefill": {
        "bootstrapping": ("bootstrap",),
        "transferring": ("inflight",),
        "waiting": ("waiting", "running"),
    },
    "decode": {
        "bootstrapping": ("prealloc",),
        "transferring": ("transfer", "deferred"),
        "decoding": ("running",),
        "waiting": ("waiting", "retracted", "rebootstrap"),
    },
}


def view_disagg(
    scheduler: Scheduler, stage: int, iterations: int, forwards: int, *, instance: str
) -> DisaggView:
    """Return a view of this rank's Scheduler, which must be between two iterations."""
    plain = view_stage(scheduler, stage, iterations, forwards)
    contents = {name: rids_of(reqs) for name, reqs in queues(scheduler).items()}
    in_batch = [rid for slot in plain.slots for rid in slot]
    running = [*in_batch, *([plain.chunked] if plain.chunked else [])]
    # a batch that prefill has run stays in its slot until the next batch replaces it
    if "inflight" in contents:
        running = [rid for rid in running if rid not in contents["inflight"]]
    contents["waiting"] = plain.waiting
    contents["running"] = tuple(dict.fromkeys(running))
    now_rooms = rooms(scheduler)
    values = {item.name: getattr(plain, item.name) for item in fields(StageView)}
    now_reported = rooms_reported(scheduler)
    where = hash((str(sorted(contents.items())), str(sorted(now_rooms.items())), str(now_reported)))
    values["progress"] = hash((plain.progress, where))
    total = int(scheduler.token_to_kv_pool_allocator.size)
    return DisaggView(
        **values,
        role=role_of(scheduler),
        instance=instance,
        queues=contents,
        kv_tokens=total - free_tokens(scheduler),
        request_slots=request_slots(scheduler)[0],
        metadata_slots=metadata_slots(scheduler)[0],
        rooms=now_rooms,
        reported=now_reported,
    )


def rids_of(reqs: Iterable[Req]) -> tuple[str, ...]:
    """Return the ids of requests."""
    return tuple(req.rid for req in reqs)
