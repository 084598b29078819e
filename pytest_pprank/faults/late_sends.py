"""Delays messages after their isend, so that messages of other channels overtake them.

Between two ranks, messages of one group and tag keep their order; no order is guaranteed for
others. The sent tensor must not be changed until the handle was waited for: code that writes to it
earlier sends something else, which gloo hides if it happens to send at once.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_pprank.faults.base import Disturbance, Perturbation
from pytest_pprank.oplog.record.ledger import intercept_sends

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

    from pytest_pprank.faults.late_work import DelayedSend

_CHANCE, _MOST_S = 0.15, 0.006
_Channel = tuple[int, tuple[Any, ...]]


class LateSends(Perturbation):
    """Delays messages of isend.

    A message is sent when its delay is over, when its handle is waited for, or before the next
    message of its channel.
    """

    name: ClassVar[str] = "late_sends"

    def __init__(self, disturbance: Disturbance) -> None:
        super().__init__(disturbance)
        self._kept: dict[_Channel, DelayedSend] = {}
        self._lock = threading.Lock()
        self._sender: _DelayedSender | None = None

    def begin(self) -> None:
        self._sender = _DelayedSender()
        self.disturbance.at_end(self._sender.close)
        self.disturbance.at_end(intercept_sends(self._intercept))

    def _intercept(
        self, send: Callable[[], Work], group: ProcessGroup, receiver: tuple[object, ...]
    ) -> Work:
        from pytest_pprank.faults.late_work import DelayedSend, LateWork

        assert self._sender is not None
        channel = (id(group), receiver)
        with self._lock:
            before = self._kept.pop(channel, None)
        if before is not None:
            before.send_now()
        # by thread: the order of events of different threads is not reproducible
        seconds = self.disturbance.delay(threading.current_thread().name, _CHANCE, _MOST_S)
        if not seconds:
            return send()
        message = DelayedSend(send)
        with self._lock:
            self._kept[channel] = message
        self._sender.schedule(message, seconds)
        return LateWork(message)


class _DelayedSender:
    """A thread that sends messages when their delay is over."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, DelayedSend]] = []
        self._all: list[DelayedSend] = []
        self._count = itertools.count()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(
            target=self._pprank_service, name="pprank-late-sends", daemon=True
        )
        self._thread.start()

    def schedule(self, message: DelayedSend, seconds: float) -> None:
        """Send `message` in so many seconds."""
        with self._change:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), message))
            # its Work must live until the message was sent, even if the test keeps no handle
            self._all.append(message)
            self._change.notify()

    def close(self) -> None:
        """Send all remaining messages, and end the thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _pprank_service(self) -> None:  # see frames.SERVICE
        while (message := self._next()) is not None:
            message.send_now()

    def _next(self) -> DelayedSend | None:
        with self._change:
            while True:
                now = time.monotonic()
                if self._due and (self._closed or self._due[0][0] <= now):
                    return heapq.heappop(self._due)[2]
                if self._closed:
                    return None
                self._change.wait(self._due[0][0] - now if self._due else None)
