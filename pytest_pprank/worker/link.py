"""A rank's end of the control plane: one thread reads, the test's thread asks and waits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue

from pytest_pprank.errors import PeerError
from pytest_pprank.wire.channel import Channel, ChannelClosed
from pytest_pprank.wire.messages import (
    Exchange,
    Exchanged,
    Message,
    Pause,
    RunTest,
    Shutdown,
    StockTaken,
    TakeStock,
)


class Link:
    """Sorts what the controller says into orders (run, leave) and answers to meetings."""

    def __init__(self, channel: Channel, take_stock: Callable[[], None]) -> None:
        self._channel = channel
        self._take_stock = take_stock
        self._orders: SimpleQueue[RunTest | Shutdown] = SimpleQueue()
        self._answers: SimpleQueue[Exchanged] = SimpleQueue()
        self._meetings = 0
        self._serial = 0
        self._meeting = threading.Lock()
        self.dismissed = False
        threading.Thread(target=self._read, name="pprank-link", daemon=True).start()

    def send(self, message: Message) -> None:
        """Tell the controller something."""
        self._channel.send(message)

    def next_order(self) -> RunTest | Shutdown:
        """Wait for the next thing to do."""
        return self._orders.get()

    def exchange(
        self, operation: str, payload: bytes | None, where: str, report: str = ""
    ) -> tuple[bytes | None, ...]:
        """Meet all ranks. Raises PeerError when one of them cannot come any more.

        `report` goes along: that of the phase which ends with this meeting.
        """
        with self._meeting:
            self._meetings += 1
            number = self._meetings
            self._channel.send(Exchange(number, operation, where, payload, self._serial, report))
            # an answer to an earlier meeting, which an exception has ended here, is nobody's
            while (answer := self._answers.get()).number != number:
                pass
        if answer.error:
            raise PeerError(answer.error)
        return answer.payloads

    def pause(self, reason: str) -> None:
        """Stop the deadlines of the running test."""
        self._channel.send(Pause(True, reason))

    def resume(self) -> None:
        """Let the deadlines go on."""
        self._channel.send(Pause(False))

    def begin(self, serial: int) -> None:
        """Mark every meeting from here on as one of test `serial`."""
        self._serial = serial

    def _read(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                if isinstance(message, Exchanged):
                    self._answers.put(message)
                elif isinstance(message, (RunTest, Shutdown)):
                    self.dismissed = isinstance(message, Shutdown)
                    self._orders.put(message)
                elif isinstance(message, TakeStock):
                    self._take_stock()
                    self._channel.send(StockTaken())
        except ChannelClosed:
            # The controller is gone. The test's thread may be stuck in a collective for ever, so
            # there is no orderly way: take the children along (this rank leads its process group).
            os.killpg(os.getpgrp(), signal.SIGKILL)
