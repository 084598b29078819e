"""The terminal of the user's pytest, while this rank has it.

The rank waits for its turn, and fetches the descriptors from the controller. From then on its
standard streams are the terminal, until it runs on without stepping.
"""

from __future__ import annotations

import os
import socket
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from pytest_pprank.protocol.messages import (
    Asked,
    Iterate,
    Message,
    Released,
    Resumed,
    Stopped,
    Told,
    Turn,
)
from pytest_pprank.protocol.terminal import Attributes, terminal_socket

_STREAMS = ("stdin", "stdout", "stderr")


class RankTerminal:
    """Gets the terminal for a thread of this rank that has stopped, and gives it back.

    `send` sends to the controller, whose answers come in `answers`. `iterate` is called while this
    rank waits, when the user lets the engine of all ranks do iterations.
    """

    def __init__(
        self,
        workdir: Path,
        send: Callable[[Message], None],
        answers: SimpleQueue[Turn | Told | Iterate | Released],
        iterate: Callable[[int], str],
    ) -> None:
        self._workdir = workdir
        self._send = send
        self._answers = answers
        self.iterate = iterate
        self._lock = threading.RLock()
        self._depth = self._owner = 0
        self._saved: list[int] = []
        self._files: dict[str, TextIO] = {}
        self._attributes: Attributes | None = None

    def stop(self, where: str, how: str, stays: str = "") -> Turn | None:
        """Wait until this rank has the terminal; None if the user ends the test elsewhere.

        `stays`: why the engine cannot do an iteration here (see protocol.messages.Stopped).

        Other threads of the rank that stop wait until `resume`. A thread that has the terminal
        already keeps it.
        """
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1
        if self._depth > 1:
            return Turn(announce=True)
        return self._turn(Stopped(where, how, _is_main(), stays))

    def pass_on(self, where: str, how: str, stays: str, then: int) -> Turn | None:
        """Pass the terminal to rank `then`; wait until it comes back, as in `stop`."""
        self.restore()
        return self._turn(Stopped(where, how, _is_main(), stays, then))

    def resume(self, *, stepping: bool) -> None:
        """Let this rank run on; while it steps, it still prints to the terminal."""
        self._depth -= 1
        if not self._depth:
            if not stepping:
                self.restore()
            self._send(Resumed(stepping))
        self._lock.release()

    def abandon(self) -> None:
        """Give the terminal back, whatever this thread was about to do with it."""
        while self._depth and self._owner == threading.get_ident():
            self.resume(stepping=False)
        if not self._depth:
            self.restore()

    def ask(self, command: str, argument: str = "") -> str:
        """Ask the controller what was typed at the prompt; return the text of its answer."""
        self._send(Asked(command, argument))
        answer = self._answers.get()
        assert isinstance(answer, Told)
        return answer.text

    def end_test(self, *, session: bool) -> None:
        """Tell the controller that the user wants the test to end (`session`: and the run)."""
        self.restore()
        self._send(Asked("exit" if session else "quit"))

    def restore(self) -> None:
        """Give this rank its own streams again."""
        if not self._saved:
            return
        self.restore_attributes()
        self._attributes = None
        for name, file in self._files.items():
            with suppress(OSError, ValueError):
                getattr(sys, name).flush()
            setattr(sys, name, file)
        for descriptor, saved in enumerate(self._saved):
            os.dup2(saved, descriptor)
            os.close(saved)
        self._saved.clear()
        self._files.clear()

    def restore_attributes(self) -> None:
        """Undo what line editing has changed in the terminal (it is not ours any more)."""
        if self._attributes is not None:
            with suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._attributes)

    def _turn(self, message: Stopped) -> Turn | None:
        self._send(message)
        while isinstance(answer := self._answers.get(), Iterate):
            self.iterate(answer.times)
        if not isinstance(answer, Turn):
            self.restore()
            return None
        if answer.term:
            os.environ["TERM"] = answer.term
        self._take()
        return answer

    def _take(self) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(terminal_socket(self._workdir)))
            _, received, _, _ = socket.recv_fds(peer, 1, 2)
        for_input, for_output = received
        try:
            self._install(for_input, for_output)
        finally:
            os.close(for_input)
            os.close(for_output)

    def _install(self, for_input: int, for_output: int) -> None:
        if not self._saved:
            self._files = {name: getattr(sys, name) for name in _STREAMS}
            for file in (sys.stdout, sys.stderr):
                file.flush()
            self._saved = [os.dup(descriptor) for descriptor in range(len(_STREAMS))]
        for descriptor, source in enumerate((for_input, for_output, for_output)):
            os.dup2(source, descriptor)
        self._attributes = termios.tcgetattr(0)
        for descriptor, name in enumerate(_STREAMS):
            mode, buffering = ("w", 1) if descriptor else ("r", -1)
            file = open(descriptor, mode, buffering, "utf-8", "replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, file)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
