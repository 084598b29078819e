"""A rank's end of the control plane: one thread reads, the test's thread asks and waits."""

from __future__ import annotations

import os
import signal
import threading
from queue import SimpleQueue

from pytest_pprank.errors import PeerError
from pytest_pprank.wire.channel import Channel, ChannelClosed
from pytest_pprank.wire.messages import Exchange, Exchanged, Message, RunTest, Shutdown


class Link:
    """Sorts what the controller says into orders (run, leave) and answers to meetings."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
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
        self, operation: str, payload: bytes | None, where: str
    ) -> tuple[bytes | None, ...]:
        """Meet all ranks. Raises PeerError when one of them cannot come any more."""
        with self._meeting:
            self._meetings += 1
            number = self._meetings
            self._channel.send(Exchange(number, operation, where, payload, self._serial))
            # an answer to an earlier meeting, which an exception has ended here, is nobody's
            while (answer := self._answers.get()).number != number:
                pass
        if answer.error:
            raise PeerError(answer.error)
        return answer.payloads

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
        except ChannelClosed:
            # The controller is gone. The test's thread may be stuck in a collective for ever, so
            # there is no orderly way: take the children along (this rank leads its process group).
            os.killpg(os.getpgrp(), signal.SIGKILL)
