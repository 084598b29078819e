"""The object behind the ``pprank`` fixture: a rank's identity, and calls that all ranks make."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pytest_pprank.errors import PeerError, UsageError
from pytest_pprank.frames import caller
from pytest_pprank.rank.portable import pickled
from pytest_pprank.topology import Sizes


class ControlPlane(Protocol):
    """The connection to the controller as a rank sees it (see host.link)."""

    def exchange(
        self, operation: str, payload: bytes | None, where: str
    ) -> tuple[bytes | None, ...]:
        """Meet all ranks; return the payload of each. Raises PeerError if a rank cannot come."""

    def pause(self, reason: str) -> None:
        """Stop the deadlines of the running test."""

    def resume(self) -> None:
        """Resume the deadlines."""

    def kill(self, ranks: tuple[int, ...]) -> None:
        """Have other ranks killed; meetings of this test are then those of the remaining ones."""


_T = TypeVar("_T")


@dataclass(frozen=True)
class Placement:
    """The position of a rank in its worker group, of these sizes.

    `rank` counts the processes of the group. `device` is a torch device string such as ``cpu`` or
    ``cuda:1``.
    """

    rank: int
    sizes: Sizes
    device: str
    workdir: Path


class Pprank:
    """This rank of the worker group.

    Attributes: rank, world_size (processes of the group), role (``pp``, ``prefill`` or ``decode``),
    role_index (the number of its instance of the role), stage, num_stages (pipeline stages of its
    instance), tp_rank, tp_size (ranks of its stage), dp_rank, dp_size (the DP ranks of its stage,
    with DP attention), ep_rank, ep_size (its EP ranks), coordinates (stage, tp_rank, dp_rank and
    ep_rank, as `pp`, `tp`, `dp` and `ep`), device (torch device string), workdir (a private folder
    that all ranks of the group share and that is removed with the group).

    `barrier`, `gather` and `broadcast` use pytest's control plane and never a torch process group,
    so they work before one exists, and while the one under test is broken. If a peer fails, dies or
    finishes the test instead of coming, they raise PeerError at once.
    """

    def __init__(self, placement: Placement, control: ControlPlane) -> None:
        self.rank = placement.rank
        self.sizes = placement.sizes
        self._role = self.sizes.role_of(self.rank)
        self.world_size = self.sizes.world_size
        self.role, self.role_index = self._role.name, self._role.index
        self.coordinates = self._role.place(self.rank)
        self.stage, self.tp_rank, self.dp_rank, self.ep_rank = self.coordinates
        self.num_stages, self.tp_size, self.dp_size, self.ep_size = self._role.counts
        self.device = placement.device
        self.workdir = placement.workdir
        self._control = control
        self._spoiled = ""
        self.alive = tuple(range(self.world_size))
        """The ranks that the running test has not had killed (see `kill`)."""
        self.failed = False
        """Whether the running test has failed so far, as this rank knows: on it, or on another."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank runs the first pipeline stage of its role."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank runs the last pipeline stage of its role (the one that samples)."""
        return self.stage == self.num_stages - 1

    @property
    def place(self) -> str:
        """What to call this rank: its number, its role if there are several, and its stage."""
        return self._role.rank_name(self.rank)

    @property
    def bracketed(self) -> str:
        """The same, for the middle of a sentence: ``rank 1 (stage 1 of 2)``."""
        return f"rank {self.rank} ({self._role.stage_name(self.rank)})"

    @property
    def place_in_role(self) -> str:
        """What to call this rank among those of its role: ``stage 1``, or ``stage 1, tp 0``."""
        return self._role.place_in_role(self.rank)

    @property
    def instance(self) -> str:
        """The name of this rank's instance of its role: ``decode``, or one of ``decode 0`` ..."""
        return self._role.instance

    @property
    def role_ranks(self) -> range:
        """The ranks of this rank's instance, by their numbers in the worker group."""
        return self._role.ranks

    @property
    def leads_role(self) -> bool:
        """Whether this is the first rank of its instance."""
        return self.rank == self.role_ranks.start

    @property
    def attention_tp(self) -> tuple[int, int]:
        """Number and count of the ranks of this stage that share the attention of its requests."""
        size = self._role.attention_tp
        return self.tp_rank % size, size

    @property
    def takes_requests(self) -> bool:
        """Whether SGLang's tokenizer talks to this rank: the first one of each DP rank."""
        return self.rank in self._role.entries

    def barrier(self) -> None:
        """Wait until every rank of the group has called it."""
        __tracebackhide__ = True
        self._control.exchange("barrier()", None, _caller())

    def gather(self, obj: _T) -> list[_T]:
        """Return every rank's `obj`, in rank order, on every rank; tensors arrive on the host.

        Raises UsageError for an `obj` that cannot be pickled.
        """
        __tracebackhide__ = True
        payloads = self._control.exchange("gather()", pickled(obj, "gather"), _caller())
        return [pickle.loads(p) for p in payloads if p is not None]

    def broadcast(self, obj: object, src: int = 0) -> Any:
        """Return rank `src`'s `obj` on every rank; tensors arrive on the host.

        The `obj` of the other ranks is ignored. Raises UsageError if there is no rank `src`, or if
        `obj` cannot be pickled.
        """
        __tracebackhide__ = True
        if not 0 <= src < self.world_size:
            raise UsageError(f"broadcast: src={src!r} is not a rank: 0 to {self.world_size - 1}")
        if src not in self.alive:
            raise UsageError(f"broadcast: this test has had rank {src} killed")
        mine = pickled(obj, "broadcast") if self.rank == src else None
        payloads = self._control.exchange(f"broadcast(src={src})", mine, _caller())
        sent = payloads[src]
        if sent is None:
            raise PeerError(f"broadcast: rank {src} brought nothing")
        return pickle.loads(sent)

    def meet(self, operation: str, obj: _T, where: str) -> list[_T]:
        """Gather `obj` under a name of its own, for fixtures whose methods all ranks must call.

        `operation` and `where` (file and line of the test) are part of the error if a peer does not
        come.
        """
        __tracebackhide__ = True
        payloads = self._control.exchange(operation, pickled(obj, operation), where)
        return [pickle.loads(p) for p in payloads if p is not None]

    @contextmanager
    def deadlines_paused(self, reason: str = "a rank asked for it") -> Iterator[None]:
        """Pause the deadlines of the test, on all ranks, inside this block."""
        self._control.pause(reason)
        try:
            yield
        finally:
            self._control.resume()

    def kill(self, ranks: Collection[int]) -> None:
        """Kill some ranks by SIGKILL: a call of all ranks, which returns on the remaining ones.

        The test's verdict is that of the remaining ranks, and all later meetings are theirs alone:
        `gather` returns their objects. The worker group is replaced after the test. Raises
        UsageError unless both sides have a rank that is alive.
        """
        __tracebackhide__ = True
        wanted = set() if isinstance(ranks, (str, int)) else {*ranks}
        alive = tuple(rank for rank in self.alive if rank not in wanted)
        if not wanted or not alive or not wanted <= {*self.alive}:
            raise UsageError(f"kill: ranks={ranks!r}; allowed: some, not all, of {self.alive}")
        gone = tuple(sorted(wanted))
        where = _caller()
        self._control.exchange(f"kill({list(gone)})", None, where)
        if self.rank in gone:
            threading.Event().wait()  # for the end
        if self.rank == alive[0]:
            self._control.kill(gone)
        self.alive = alive
        self._control.exchange(f"the end of kill({list(gone)})", None, where)

    def spoil(self, reason: str) -> None:
        """Have this worker group replaced by a fresh one after the running test."""
        self._spoiled = self._spoiled or reason

    @property
    def spoiled(self) -> str:
        """Why this group must not run another test; empty while it may."""
        return self._spoiled

    def __repr__(self) -> str:
        of_role = "pp " if self.role == "pp" else ""
        place = f"{of_role}{self._role.stage_name(self.rank)}"
        return f"<rank {self.rank} of {self.world_size}: {place} on {self.device}>"


def _caller() -> str:
    """Return file and line of the test's call, for messages about a missed meeting."""
    frame = caller(sys._getframe(2))
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
