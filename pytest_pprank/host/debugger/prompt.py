"""pdb at the prompt of a rank: the user's class of it, with commands about the other ranks."""

from __future__ import annotations

import importlib
import os
import pdb
import re
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, ClassVar

import pytest

from pytest_pprank.rank.context import current_rank

if TYPE_CHECKING:
    from pytest_pprank.host.debugger.iterate import Iteration
    from pytest_pprank.host.debugger.terminal import RankTerminal
    from pytest_pprank.protocol.messages import Turn

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

SET_TRACE, RUNCALL, POST_MORTEM = "set_trace", "runcall", "post_mortem"
_GOES_ON = -1
"""What bdb's `stoplineno` is after `continue`."""
_STATEMENT = re.compile(r"[=.\[(+\-*/%<>!&|^,]|(in|is|and|or|not|if)\b")
"""How the rest of a line begins that is a statement about a variable ``rank``."""


def name() -> str:
    """Return what to call this rank."""
    return current_rank().place


def place(frame: FrameType, number: int = 0) -> str:
    """Return file, line and function of a frame, in words; `number`: another line of it."""
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{number or frame.f_lineno} in {code.co_name}"


class RankPdb(pdb.Pdb):
    """Mixed into the user's class of pdb: waits for the terminal, and knows of other ranks."""

    terminal: ClassVar[RankTerminal]
    iteration: ClassVar[Iteration]
    leave: ClassVar[Callable[[RankPdb], None]]
    """Called when the user lets the test go on."""

    def prepare(self, how: str, turn: Turn | None, header: str | None = None) -> None:
        """Prepare for the first prompt, whatever arguments the user's class is made with.

        `turn`: the terminal, if this rank has it: a class may look at it when it is instantiated.
        `how`: the way in which the debugger was entered (see protocol.messages.Stopped). `header`:
        a line to show before the first prompt.
        """
        self.how, self.turn, self.header = how, turn, header
        self.nosigint = True  # Ctrl-C while a rank runs is for the whole run
        own = name()
        bracketed = re.fullmatch(r"(.*)\)\s*", self.prompt)
        self.prompt = f"{bracketed[1]} {own}) " if bracketed else f"[{own}] {self.prompt}"
        self._inside = False
        self._where = self._stays = ""

    # every way to stop: first the terminal, as some print before they prompt

    def user_call(self, frame: FrameType, argument_list: None) -> None:
        """Stop at a call, if the user wants that."""
        if self.stop_here(frame):
            self._talk(frame, None, partial(super().user_call, frame, argument_list))

    def user_line(self, frame: FrameType) -> None:
        """Stop at a line."""
        self._talk(frame, None, partial(super().user_line, frame))

    def user_return(self, frame: FrameType, return_value: object) -> None:
        """Stop at a return."""
        self._talk(frame, None, partial(super().user_return, frame, return_value))

    def user_exception(self, frame: FrameType, exc_info: ExcInfo) -> None:
        """Stop at an exception."""
        self._talk(frame, None, partial(super().user_exception, frame, exc_info))

    def interaction(self, frame: FrameType | None, traceback: TracebackType | None) -> None:
        """Talk to the user. From Python 3.13 on, `traceback` may be an exception."""
        self._talk(frame, traceback, partial(super().interaction, frame, traceback))

    def get_stack(
        self, f: FrameType | None, t: TracebackType | None
    ) -> tuple[list[tuple[FrameType, int]], int]:
        """Return the stack; after a failure begin at the innermost frame that is not hidden."""
        stack, index = super().get_stack(f, t)
        if f is None:
            index = max(0, len(stack) - 1)
            while index and stack[index][0].f_locals.get("__tracebackhide__", False):
                index -= 1
        return stack, index

    def _talk(self, frame: FrameType | None, traceback: object, talk: Callable[[], None]) -> None:
        if self._inside:
            talk()
            return
        self._where = place(frame) if frame is not None else place_of_error(traceback)
        self._stays = self.iteration.why_not(frame)
        turn = self.turn or self.terminal.stop(self._where, self.how, self._stays)
        self.turn = None
        try:
            if turn is None:
                self._end_here()
                return
            self._inside = True
            self._begin(announce=turn.announce)
            talk()
        finally:
            self._inside = False
            if not (steps := self._steps()):
                type(self).leave(self)
            self.terminal.resume(stepping=steps)

    def _steps(self) -> bool:
        return self.how != POST_MORTEM and self.stoplineno != _GOES_ON

    def _begin(self, *, announce: bool) -> None:
        self.stdin, self.stdout = sys.stdin, sys.stdout
        if announce:
            self.message(line(f"PDB {self.how} on {name()}"))
        if self.header is not None:
            self.message(self.header)
            self.header = None

    def _end_here(self) -> bool:
        """The test ends: report the failure that was looked at; else wait for the group's end."""
        if self.how != POST_MORTEM:
            wait_for_the_end()
        return True

    # commands

    def do_ranks(self, _arg: str) -> None:
        """Print where every rank is: stopped, waiting for another one, or at which line."""
        self.message(self.terminal.ask("ranks"))

    def do_rank(self, arg: str) -> bool:
        """rank K: go on with rank K, which has stopped, too; `ranks` prints where all are.

        A variable `rank` is printed by `p rank`.
        """
        if not arg:
            self.message(f"this is {name()}; `rank K` moves to another one that has stopped, "
                         "`p rank` prints a variable")  # fmt: skip
            return False
        if _STATEMENT.match(arg):
            self.default(f"rank {arg}")
            return False
        if text := self.terminal.ask("rank", arg):
            self.message(text)
            return False
        turn = self.terminal.pass_on(self._where, self.how, self._stays, int(arg))
        if turn is None:
            return self._end_here()
        self._begin(announce=turn.announce)
        return False

    def do_iterate(self, arg: str) -> None:
        """iterate [N]: let the engine do one iteration, or N, on all ranks; all must have stopped.

        As `engine.step(N)` does that all ranks call. (`step` is pdb's.)
        """
        if text := self.terminal.ask("iterate", arg):
            self.message(text)
        else:
            self.message(self.iteration(int(arg or 1)))

    def do_quit(self, _arg: str) -> bool:
        """End this test on all ranks, and go on with the next one. `exit` ends the run, too."""
        return self._quit(session=False)

    def do_exit(self, _arg: str) -> bool:
        """End this test on all ranks, and the run, as `quit` does in pytest without ranks."""
        return self._quit(session=True)

    def do_EOF(self, _arg: str) -> bool:
        """End this test on all ranks, as `quit` does."""
        self.message("")
        return self._quit(session=False)

    do_q = do_quit  # type: ignore[assignment]  # other names of arguments

    def _quit(self, *, session: bool) -> bool:
        self.terminal.end_test(session=session)
        self.set_quit()
        return self._end_here()


def wait_for_the_end() -> None:
    """Wait until the controller ends this process."""
    threading.Event().wait()


def line(words: str) -> str:
    """Return `words` in the middle of a line of the terminal."""
    columns = shutil.get_terminal_size().columns - 1
    return f" {words} ".center(columns, ">")


def place_of_error(error: object) -> str:
    """Return file, line and function where an exception, or its traceback, comes from."""
    traceback = error.__traceback__ if isinstance(error, BaseException) else error
    found = "an unknown place"
    while isinstance(traceback, TracebackType):
        frame = traceback.tb_frame
        if not frame.f_locals.get("__tracebackhide__", False):
            found = place(frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def class_of(given: tuple[str, str] | None, **parts: object) -> type[RankPdb]:
    """Return the class for the prompts of this rank, made of the one that --pdbcls names.

    `parts`: the class attributes of RankPdb.

    Raises pytest.UsageError if that cannot be imported, or is not a subclass of pdb.Pdb.
    """
    base = _imported(*given) if given else pdb.Pdb
    bases = (RankPdb,) if base is pdb.Pdb else (RankPdb, base)
    return type(RankPdb.__name__, bases, parts)


def _imported(module: str, name: str) -> type[pdb.Pdb]:
    given = f"--pdbcls: {f'{module}:{name}'!r}"
    try:
        found: object = attrgetter(name)(importlib.import_module(module))
    except Exception as error:
        raise pytest.UsageError(f"{given} cannot be imported: {error}") from error
    if not isinstance(found, type) or not issubclass(found, pdb.Pdb):
        raise pytest.UsageError(f"{given} is not a subclass of pdb.Pdb, which ranks need")
    return found
