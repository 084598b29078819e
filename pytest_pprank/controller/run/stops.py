"""The ranks that have stopped in pdb, and which of them has the terminal. Pure.

The terminal belongs to one rank at a time, while its prompt is shown. A rank that steps gets it
back first, if it stops again soon; else the others get it in the order in which they have stopped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pytest_pprank.controller.run.steps import Action, Lend, ShowRanks, TakeBack, Tell
from pytest_pprank.protocol.messages import Asked, Iterate, Released, Resumed, Stopped, Told
from pytest_pprank.words import plural_ranks

POST_MORTEM = "post_mortem"
_TOGETHER_SECONDS = 0.3
"""Ranks that stop so shortly after each other have stopped together: the first one is first."""
_STEP_SECONDS = 1.5
"""How long a step may take before another stopped rank gets the prompt."""
_REPORT_SECONDS = 5.0
"""How long ranks that were asked about their failure may take to report it, once it is over."""


@dataclass(frozen=True)
class Quit:
    """The user has ended the test at the prompt of `rank`, at `where`.

    `session`: and wants the run to stop. `reporting`: ranks that still report their own failures,
    until `patience` at most.
    """

    rank: int
    where: str
    session: bool
    reporting: frozenset[int]
    patience: float


class Stops:
    """Decides which of the stopped ranks has the terminal, and answers what is asked there."""

    def __init__(self, ranks: Collection[int]) -> None:
        self._ranks = {*ranks}
        self._stopped: dict[int, tuple[Stopped, float]] = {}
        self._lent: int | None = None
        self._last: int | None = None
        self._next: int | None = None
        self._free_from = 0.0
        self._shown: set[int] = set()
        self.quit: Quit | None = None

    def stop(self, rank: int, message: Stopped, now: float) -> Iterator[Action]:
        """Note that a rank has stopped, or passes the prompt on."""
        if self.quit is not None:
            yield Tell(rank, Released())
            return
        self._stopped[rank] = message, now
        self._free_from = max(self._free_from, now + _TOGETHER_SECONDS)
        if rank == self._lent:
            yield from self._back()
            self._next, self._free_from = message.then, now

    def resume(self, rank: int, message: Resumed, now: float) -> Iterator[Action]:
        """Note that a rank runs on."""
        self._stopped.pop(rank, None)
        if not message.stepping:
            self._shown.discard(rank)
        if rank == self._lent:
            yield from self._back()
            self._next = rank if message.stepping else None
            self._free_from = now + (_STEP_SECONDS if message.stepping else 0.0)

    def lose(self, rank: int) -> Iterator[Action]:
        """Note that a rank is dead, or was killed because the test wanted it."""
        self._ranks.discard(rank)
        self._stopped.pop(rank, None)
        if rank == self._lent:
            yield from self._back()

    def turns(self, now: float) -> Iterator[Action]:
        """Lend the terminal to a stopped rank, if it is free; to be called repeatedly."""
        if self._lent is not None or not self._stopped or self.quit is not None:
            return
        if self._next not in self._stopped and now < self._free_from:
            return
        rank = self._next if self._next in self._stopped else self._first()
        assert rank is not None
        message, _ = self._stopped[rank]
        announce = rank not in self._shown or rank != self._last
        failed = message.where if message.how == POST_MORTEM and rank not in self._shown else ""
        self._lent = self._last = rank
        self._next = None
        self._shown.add(rank)
        yield Lend(rank, announce, message.main, failed)

    def asked(self, rank: int, message: Asked, now: float) -> Iterator[Action]:
        """Answer what was typed at the prompt of a rank."""
        if message.command == "ranks":
            yield ShowRanks(rank, self.places())
        elif message.command == "rank":
            yield Tell(rank, Told(self._cannot_move(rank, message.argument)))
        elif message.command == "iterate":
            yield from self._iterate(rank, message.argument)
        else:
            yield from self._end(rank, now, session=message.command == "exit")

    def places(self) -> Mapping[int, str]:
        """Return where each stopped rank is, in words."""
        return {rank: self._place(rank) for rank in sorted(self._stopped)}

    def _place(self, rank: int) -> str:
        message, _ = self._stopped[rank]
        how = "failed, stopped" if message.how == POST_MORTEM else "stopped"
        turn = "this prompt" if rank == self._lent else f"rank {rank} goes there"
        return f"{how} at {message.where} ({turn})"

    def _first(self) -> int:
        first = min(since for _, since in self._stopped.values())
        together = first + _TOGETHER_SECONDS
        return min(rank for rank, (_, since) in self._stopped.items() if since <= together)

    def _iterate(self, rank: int, argument: str) -> Iterator[Action]:
        """Let the engine do an iteration on all ranks: it is a call of all ranks together."""
        text = self._cannot_iterate(argument)
        if not text:
            times = int(argument or 1)
            yield from (Tell(other, Iterate(times)) for other in self._stopped if other != rank)
        yield Tell(rank, Told(text))

    def _cannot_iterate(self, argument: str) -> str:
        if not re.fullmatch(r"([1-9]\d*)?", argument):
            return f"iterate: {argument!r} is not a number of iterations: 1 or above"
        stays = {rank: it.stays for rank, (it, _) in self._stopped.items() if it.stays}
        running = self._ranks - {*self._stopped}
        if running:
            text = plural_ranks(running)
            return f"iterate: all ranks must have stopped, {text} {_have(running)} not"
        return "; ".join(f"iterate: rank {rank} {why}" for rank, why in sorted(stays.items()))

    def _cannot_move(self, rank: int, argument: str) -> str:
        known = f"{min(self._ranks)} to {max(self._ranks)}"
        if not re.fullmatch(r"\d+", argument) or int(argument) not in self._ranks:
            return f"rank: {argument!r} is not a rank of this test: {known}"
        if (wanted := int(argument)) == rank:
            return f"this is rank {rank}"
        if wanted in self._stopped:
            return ""
        others = {*self._stopped} - {rank}
        but = f"{plural_ranks(others)} {_have(others)}" if others else "no other one has"
        return f"rank {wanted} has not stopped, {but}; `ranks` says where all are"

    def _end(self, rank: int, now: float, *, session: bool) -> Iterator[Action]:
        reporting = {r for r, (it, _) in self._stopped.items() if it.how == POST_MORTEM}
        where = self._stopped[rank][0].where if rank in self._stopped else "the prompt"
        self.quit = Quit(rank, where, session, frozenset(reporting), now + _REPORT_SECONDS)
        yield from self._back()
        for other in self._stopped:
            if other != rank:
                yield Tell(other, Released())
        self._stopped.clear()

    def _back(self) -> Iterator[Action]:
        if self._lent is not None:
            self._lent = None
            yield TakeBack()


def _have(ranks: Collection[int]) -> str:
    return "has" if len(ranks) == 1 else "have"
