"""A rank's end of the control plane.

The thread that sends a request reads its answer; another thread reads the watch connection.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import NoReturn

from pytest_pprank.errors import PeerError
from pytest_pprank.protocol.channel import Channel, ChannelClosed
from pytest_pprank.protocol.messages import (
    Exchange,
    Exchanged,
    Iterate,
    Kill,
    LedgerUpdated,
    Message,
    Pause,
    Released,
    Report,
    RunTest,
    Shutdown,
    Told,
    Turn,
    UpdateLedger,
)
from pytest_pprank.trace.file import MEETING
from pytest_pprank.trace.record.trace import noted

_DEVICE_SECONDS = 1.0
"""How often a rank records which operations its device still runs."""


class Link:
    """The rank's connections to the controller: orders, meetings, and requests at any time.

    Orders (RunTest, Shutdown) and answers to meetings come by `channel`, and are read by the thread
    that waits for them: waking another thread for each would cost more than everything else.
    Requests come by `watch` and are served whatever the other threads do.
    """

    def __init__(
        self,
        channel: Channel,
        watch: Channel,
        update_ledger: Callable[[], None],
        update_device: Callable[[], None] | None = None,
    ) -> None:
        """`update_ledger` is called on request, `update_device` once a second."""
        self._update_device = update_device
        self._channel = channel
        self._watch = watch
        self._update_ledger = update_ledger
        self._orders: deque[RunTest | Shutdown] = deque()
        self._answer: Exchanged | None = None
        self._meetings = 0
        self._serial = 0
        self._lock = threading.Lock()
        self.shutting_down = False
        self.debugger: SimpleQueue[Turn | Told | Iterate | Released] = SimpleQueue()
        """What the controller says to a debugger at its prompt."""
        self.at_loss: Callable[[], None] = lambda: None
        """Called before this rank is killed because the controller is gone."""
        threading.Thread(target=self._pprank_service, name="pprank-link", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message to the controller."""
        self._channel.send(message)

    def next_order(self) -> RunTest | Shutdown:
        """Wait for the next order."""
        # A thread that is still in a meeting holds the lock until the controller answers. It does:
        # this rank has finished the test.
        with self._lock:
            while not self._orders:
                self._receive()
            return self._orders.popleft()

    def exchange(
        self, operation: str, payload: bytes | None, where: str, report: Report = None
    ) -> tuple[bytes | None, ...]:
        """Meet all ranks; return the payload of each. Raises PeerError if a rank cannot come.

        `report`: that of the phase which ends with this meeting.
        """
        __tracebackhide__ = True
        with self._lock, noted(MEETING, operation, {"at": where}):
            self._meetings += 1
            number = self._meetings
            self._channel.send(Exchange(number, operation, where, payload, self._serial, report))
            # skip answers to earlier meetings, whose exchange was ended by an exception
            while (answer := self._answer) is None or answer.number != number:
                self._receive()
            self._answer = None
            if answer.error:
                raise PeerError(answer.error)
        return answer.payloads

    def pause(self, reason: str) -> None:
        """Stop the deadlines of the running test."""
        self._channel.send(Pause(True, reason))

    def resume(self) -> None:
        """Resume the deadlines."""
        self._channel.send(Pause(False))

    def kill(self, ranks: tuple[int, ...]) -> None:
        """Have other ranks killed; meetings of this test are then those of the remaining ones."""
        self._channel.send(Kill(ranks))

    def begin(self, serial: int) -> None:
        """Mark every meeting from now on as one of test `serial`."""
        self._serial = serial

    def _receive(self) -> None:
        try:
            message = self._channel.receive()
        except ChannelClosed:
            self._end()
        if isinstance(message, Exchanged):
            self._answer = message
        elif isinstance(message, (RunTest, Shutdown)):
            self.shutting_down |= isinstance(message, Shutdown)
            self._orders.append(message)

    def _pprank_service(self) -> None:  # see frames.SERVICE
        try:
            while True:
                while self._update_device is not None and not self._watch.wait(_DEVICE_SECONDS):
                    self._update_device()
                message = self._watch.receive()
                if isinstance(message, Shutdown):
                    self.shutting_down = True
                elif isinstance(message, UpdateLedger):
                    self._update_ledger()
                    self._channel.send(LedgerUpdated())
                elif isinstance(message, (Turn, Told, Iterate, Released)):
                    self.debugger.put(message)
        except ChannelClosed:
            self._end()

    def _end(self) -> NoReturn:
        self.at_loss()
        _kill_own_process_group()


def _kill_own_process_group() -> NoReturn:
    """Kill this rank and its children (it leads its process group): the controller is gone.

    The test's thread may be stuck in a collective for ever, so there is no orderly way.
    """
    os.killpg(os.getpgrp(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")
