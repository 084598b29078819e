"""Meetings of all ranks (barrier, gather, broadcast, the end of a phase), on the controller's side.

A meeting takes place when every rank has arrived at the same operation. As soon as that has become
impossible, because a rank is in another meeting, has finished or is dead, the waiting ranks are
released with an error that says where each rank is. So a missed meeting never costs a timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from pytest_pprank.oplog.read.wait_graph import InMeeting
from pytest_pprank.protocol.messages import Exchange, Exchanged

_PHASE_END = "end of "


class Meetings:
    """The meetings of one running test. `answer(ranks, message)` sends a message to some ranks."""

    def __init__(
        self, world_size: int, answer: Callable[[Collection[int], Exchanged], None]
    ) -> None:
        self._world_size = world_size
        self._answer = answer
        self._here: dict[int, Exchange] = {}
        self._gone: dict[int, str] = {}
        self._lost: set[int] = set()

    def arrive(self, rank: int, exchange: Exchange) -> None:
        """Note that a rank has arrived at a meeting."""
        self._here[rank] = exchange
        self._settle()

    def leave(self, rank: int, why: str) -> None:
        """Note that a rank will come to no further meeting of this test, and `why`.

        `why` follows the rank in messages: ``finished the test``, ``died``.
        """
        self._gone[rank] = why
        left = self._here.pop(rank, None)
        if left is not None:  # another thread of the rank is in it and must not wait for ever
            error = f"rank {rank} waits {_words(left)} in vain: it has itself {why}"
            self._answer((rank,), Exchanged(left.number, error=error))
        self._settle()

    def lose(self, rank: int) -> None:
        """Note that the test wanted a rank to be killed: meetings are those of the others now."""
        self._lost.add(rank)
        self._here.pop(rank, None)
        self._settle()

    def at_end_of_phase(self) -> dict[int, str]:
        """Return the ranks that wait at the end of a phase, with its name (``setup``, ``call``)."""
        return {
            rank: exchange.operation.removeprefix(_PHASE_END)
            for rank, exchange in self._here.items()
            if exchange.operation.startswith(_PHASE_END)
        }

    def any_at_end_of_phase(self) -> bool:
        """Return whether `at_end_of_phase` would return any rank."""
        return any(map(_is_phase_end, self._here.values()))

    def waiting(self) -> dict[int, str]:
        """Return the ranks that wait in a meeting of the test, with the meeting in words."""
        return {rank: _words(e) for rank, e in self._here.items() if not _is_phase_end(e)}

    def blocked(self) -> dict[int, InMeeting]:
        """Return the ranks that wait in a meeting of the test, with the ranks that are missing."""
        absent = {*self._here} | self._lost
        missing = tuple(r for r in range(self._world_size) if r not in absent)
        return {
            rank: InMeeting(f"{e.operation} at {e.where}", e.number, missing)
            for rank, e in self._here.items()
            if not _is_phase_end(e)
        }

    def _settle(self) -> None:
        operations = {exchange.operation for exchange in self._here.values()}
        if len(operations) == 1 and len(self._here) == self._world_size - len(self._lost):
            self._complete()
        elif self._here and (len(operations) > 1 or self._gone):
            self._release(operations)

    def _complete(self) -> None:
        here, self._here = self._here, {}
        payloads = tuple(
            here[rank].payload if rank in here else None for rank in range(self._world_size)
        )
        by_number: dict[int, list[int]] = {}
        for rank, exchange in here.items():
            by_number.setdefault(exchange.number, []).append(rank)
        for number, ranks in by_number.items():
            self._answer(ranks, Exchanged(number, payloads))

    def _release(self, operations: set[str]) -> None:
        # A rank at the end of a phase waits there until a rank has left for good. Ranks that wait
        # in another meeting, to which that rank will not come, are released.
        keep = {r for r, e in self._here.items() if _is_phase_end(e)} if not self._gone else set()
        if keep and len(operations) == 1:
            return
        where = self._where()
        for rank in [r for r in self._here if r not in keep]:
            exchange = self._here.pop(rank)
            others = "; ".join(text for r, text in where.items() if r != rank)
            error = f"rank {rank} waits {_words(exchange)} in vain: {others}"
            self._answer((rank,), Exchanged(exchange.number, error=error))

    def _where(self) -> dict[int, str]:
        here = {rank: f"rank {rank} is {_words(e)}" for rank, e in self._here.items()}
        gone = {rank: f"rank {rank} {why}" for rank, why in self._gone.items()}
        return dict(sorted({**here, **gone}.items()))


def _is_phase_end(exchange: Exchange) -> bool:
    return exchange.operation.startswith(_PHASE_END)


def _words(exchange: Exchange) -> str:
    if _is_phase_end(exchange):
        phase = exchange.operation.removeprefix(_PHASE_END)
        return f"through with {phase} ({exchange.where})"
    return f"in {exchange.operation} at {exchange.where}"
