"""What one run knows about debugging: the options, and the terminal there is for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank.controller.debugger.attach import attach_lines
from pytest_pprank.controller.debugger.prompt import Prompt
from pytest_pprank.controller.debugger.terminal import Terminal
from pytest_pprank.controller.listeners import Listeners
from pytest_pprank.options import options_of
from pytest_pprank.protocol.bootstrap import Debugging

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup

_FLAGS = {"--pdb": "usepdb", "--trace": "trace"}


class Debug:
    """The debugging of one run; `close` gives up its terminal. To be made while no test runs."""

    def __init__(self, config: pytest.Config, listeners: Listeners) -> None:
        self._terminal = Terminal(config)
        self._asked = [flag for flag, name in _FLAGS.items() if config.getoption(name, False)]
        self.prompt = Prompt(self._terminal, listeners.hold, printed=not listeners.live)
        self.debugging = Debugging(
            post_mortem="--pdb" in self._asked,
            trace="--trace" in self._asked,
            only=options_of(config).pdb,
            refusal=self._terminal.refusal,
            attach=options_of(config).attach,
        )

    def announce(self, group: WorkerGroup) -> None:
        """Say where the ranks of a new group wait for debuggers, under --pprank-attach."""
        endpoints = {rank: it.endpoint for rank, it in group.ranks.items() if it.endpoint}
        if endpoints:
            self._terminal.begin_line()
            for line in attach_lines(group.names, endpoints):
                self._terminal.say(line)

    def refused(self, tests: int) -> str:
        """Return what to tell the user if a debugger was asked for in vain; else empty."""
        if not self._asked or not self._terminal.refusal:
            return ""
        return (
            f"pprank: {' and '.join(self._asked)} cannot stop in the {tests} ranked test(s): "
            f"{self._terminal.refusal}; the failures are told as without it"
        )

    def close(self) -> None:
        """Take the terminal back from a rank, and give it up."""
        self.prompt.take_back()
        self._terminal.close()
