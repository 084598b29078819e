"""A rank's end of the control plane: who asks reads the answer; a thread watches beside it."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from pytest_pprank.errors import PeerError
from pytest_pprank.protocol.channel import Channel, ChannelClosed
from pytest_pprank.protocol.messages import (
    Exchange,
    Exchanged,
    LedgerUpdated,
    Message,
    Pause,
    Report,
    RunTest,
    Shutdown,
    UpdateLedger,
)


class Link:
    """What the controller says: orders (run, leave), answers to meetings, questions in between.

    Orders and answers come by `channel`, and are read by the thread that waits for them: waking
    another one for it would cost more than all the rest. Questions come by `watch`, whatever the
    other threads do meanwhile.
    """

    def __init__(self, channel: Channel, watch: Channel, update_ledger: Callable[[], None]) -> None:
        self._channel = channel
        self._watch = watch
        self._update_ledger = update_ledger
        self._orders: deque[RunTest | Shutdown] = deque()
        self._answer: Exchanged | None = None
        self._meetings = 0
        self._serial = 0
        self._lock = threading.Lock()
        self.shutting_down = False
        threading.Thread(target=self._pprank_service, name="pprank-link", daemon=True).start()

    def send(self, message: Message) -> None:
        """Tell the controller something."""
        self._channel.send(message)

    def next_order(self) -> RunTest | Shutdown:
        """Wait for the next thing to do."""
        # a thread that is still in a meeting is answered: this rank has finished the test
        with self._lock:
            while not self._orders:
                self._receive()
            return self._orders.popleft()

    def exchange(
        self, operation: str, payload: bytes | None, where: str, report: Report = None
    ) -> tuple[bytes | None, ...]:
        """Meet all ranks. Raises PeerError when one of them cannot come any more.

        `report` goes along: that of the phase which ends with this meeting.
        """
        __tracebackhide__ = True
        with self._lock:
            self._meetings += 1
            number = self._meetings
            self._channel.send(Exchange(number, operation, where, payload, self._serial, report))
            # an answer to an earlier meeting, which an exception has ended here, is nobody's
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
        """Let the deadlines go on."""
        self._channel.send(Pause(False))

    def begin(self, serial: int) -> None:
        """Mark every meeting from here on as one of test `serial`."""
        self._serial = serial

    def _receive(self) -> None:
        try:
            message = self._channel.receive()
        except ChannelClosed:
            _kill_own_process_group()
        if isinstance(message, Exchanged):
            self._answer = message
        elif isinstance(message, (RunTest, Shutdown)):
            self.shutting_down |= isinstance(message, Shutdown)
            self._orders.append(message)

    def _pprank_service(self) -> None:  # see frames.SERVICE
        try:
            while True:
                message = self._watch.receive()
                if isinstance(message, Shutdown):
                    self.shutting_down = True
                elif isinstance(message, UpdateLedger):
                    self._update_ledger()
                    self._channel.send(LedgerUpdated())
        except ChannelClosed:
            _kill_own_process_group()


def _kill_own_process_group() -> NoReturn:
    """Leave with all children (this rank leads its process group): the controller is gone.

    The test's thread may be stuck in a collective for ever, so there is no orderly way.
    """
    os.killpg(os.getpgrp(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")
