"""Performs what the state machine decides about ranks that have stopped in a debugger."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pytest_pprank.controller.debugger.terminal import Terminal
from pytest_pprank.controller.run.steps import Lend, TakeBack, Tell
from pytest_pprank.protocol.messages import Told, Turn

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup


class Prompt:
    """Lends the terminal to ranks, and sends the answers to what is typed there.

    `hold` is called with whether a rank has the terminal: other ranks' output must wait then.
    `printed`: whether to show what a failed rank has printed, which is not on the terminal yet.
    """

    def __init__(self, terminal: Terminal, hold: Callable[[bool], None], *, printed: bool) -> None:
        self._terminal = terminal
        self._hold = hold
        self._printed = printed

    @property
    def lent(self) -> bool:
        """Whether a rank has the terminal."""
        return self._terminal.lent

    def act(self, group: WorkerGroup, action: Lend | TakeBack | Tell) -> None:
        """Perform one action."""
        if isinstance(action, Lend):
            self._lend(group, action)
        elif isinstance(action, TakeBack):
            self.take_back()
        else:
            group.send_on_watch(action.rank, action.message)

    def _lend(self, group: WorkerGroup, action: Lend) -> None:
        self._hold(True)
        self._terminal.begin_line()
        turn = Turn(action.announce, os.environ.get("TERM", ""))
        self._terminal.lend(
            group.workdir,
            group.ranks[action.rank].pid,
            lambda: group.send_on_watch(action.rank, turn),
            main=action.main,
        )

    def take_back(self) -> None:
        """Take the terminal back, if a rank has it."""
        if self._terminal.lent:
            self._terminal.take_back()
            self._hold(False)

    def show_printed(self, rank: int, streams: Mapping[str, str]) -> None:
        """Show what a rank has printed, unless it has been shown already."""
        for stream, text in streams.items() if self._printed else ():
            self._terminal.begin_line()
            self._terminal.show(f"captured {stream} of rank {rank}", text)

    def tell(self, group: WorkerGroup, rank: int, places: Mapping[int, str]) -> None:
        """Tell a rank where all ranks are."""
        names = group.names
        lines = [f"{names[each]}: {places.get(each, 'running')}" for each in names]
        group.send_on_watch(rank, Told("\n".join(lines)))
