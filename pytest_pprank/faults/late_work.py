"""A Work for a message that has not been sent yet (see faults.late_sends)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed import Work

from pytest_pprank.devices import sim
from pytest_pprank.oplog.record.hooks import recording_is_completed, recording_wait


class DelayedSend:
    """A message, and how to send it: `send` returns torch's own Work. Thread-safe."""

    def __init__(self, send: Callable[[], Work]) -> None:
        self._send: Callable[[], Work] | None = send
        self._where = _side_stream()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.work: Work | None = None

    def send_now(self) -> None:
        """Send the message, unless it was sent already."""
        with self._lock:
            send, self._send = self._send, None
            if send is None:
                return
            try:
                with self._where:
                    self.work = send()
            except BaseException as error:  # raised where the handle is waited for
                self._error = error

    def sent(self) -> Work:
        """Send the message if needed, and return torch's Work; raises what sending has raised."""
        self.send_now()
        if self._error is not None:
            raise self._error
        return self.work


def _side_stream() -> AbstractContextManager[object]:
    """Return a context in which a later send waits for the current stream's work as of now.

    The send, by any thread, waits for nothing else. torch makes a message wait for the stream that
    is current when it is sent.
    """
    if sim.in_use():
        module: Any = torch.get_device_module(sim.NAME)
    elif torch.cuda.is_initialized():
        module = torch.cuda
    else:
        return nullcontext()
    stream = module.Stream()
    stream.wait_stream(module.current_stream())
    return module.stream(stream)  # type: ignore[no-any-return]


class LateWork(Work):  # type: ignore[misc]
    """The handle of a message that is sent later, at the latest when it is waited for."""

    def __init__(self, message: DelayedSend) -> None:
        super().__init__()
        self._message = message

    def _wait(self, *args: object, **kwargs: object) -> bool:
        return bool(self._message.sent().wait(*args, **kwargs))

    def _is_completed(self) -> bool:
        work = self._message.work
        return work is not None and bool(work.is_completed())

    wait = recording_wait(_wait)
    is_completed = recording_is_completed(_is_completed)

    def is_success(self) -> bool:
        """Like torch's."""
        return bool(self._message.sent().is_success())

    def exception(self) -> BaseException | None:
        """Like torch's."""
        error: BaseException | None = self._message.sent().exception()
        return error

    def synchronize(self) -> None:
        """Like torch's."""
        self._message.sent().synchronize()
