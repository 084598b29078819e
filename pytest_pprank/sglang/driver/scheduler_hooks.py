"""Connects the engine to a Scheduler: a hook at the top of each iteration, and socket counters.

SGLang's own scripted runtime has a hook at the top of each iteration of every event loop
(``scripted_scheduler_hook.step``) and at each forward (``on_run_batch``), on all stages; this
module installs a hook of its own there. Socket messages are only counted, so that a step begins
after everything sent to the Scheduler has arrived, and ends after everything it sent has arrived.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import PprankError, UsageError
from pytest_pprank.rank.context import current_rank
from pytest_pprank.rank.patches import patch
from pytest_pprank.rank.thread_modes import thread_modes
from pytest_pprank.sglang.compat.consensus import first_message_of_an_iteration
from pytest_pprank.sglang.compat.disagg import role_of
from pytest_pprank.sglang.compat.messages import receiver, sender
from pytest_pprank.sglang.compat.seams import missing, need
from pytest_pprank.sglang.driver.control import ControlRecorder
from pytest_pprank.sglang.driver.tokenizer_side import TokenizerSide
from pytest_pprank.sglang.stage.event_loop import LeaveLoop
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message, ScheduleBatch, Scheduler, Socket

_ARRIVAL_S = 20.0
"""Time limit, in seconds, for a message between two threads of one process; more means a bug."""


class SchedulerHook:
    """Takes the place of SGLang's ScriptedSchedulerHook."""

    def __init__(
        self, step: Callable[[], None], on_run_batch: Callable[[ScheduleBatch], None]
    ) -> None:
        self.step = step
        self.on_run_batch = on_run_batch


class Inbox:
    """The Scheduler's end of the request socket: receives all that was sent before it returns."""

    def __init__(self, socket: Socket | _Outbox) -> None:
        self._socket = socket
        self._buffer: deque[bytes] = deque()
        self._zmq = import_module("zmq")
        self._received = 0
        self.sent = 0

    def recv(self, flags: int = 0) -> bytes:  # noqa: ARG002  (never blocks: what was sent is here)
        """Return the next message; raises zmq.Again when there is none."""
        while self._received < self.sent:
            if not self._socket.poll(_ARRIVAL_S * 1000):
                raise PprankError("a request did not arrive at the Scheduler's socket")
            self._buffer.append(self._socket.recv())
            self._received += 1
        if not self._buffer:
            raise self._zmq.Again
        return self._buffer.popleft()

    def recv_pyobj(self, flags: int = 0) -> object:
        """Return the next message, unpickled."""
        return pickle.loads(self.recv(flags))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Mail:
    """The receiving end of one of the Scheduler's sockets; counts messages sent and read."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._recv = receiver()
        self.announced = 0
        self._read = 0

    def receive(self) -> list[Message]:
        """Return all messages that the Scheduler has sent since the last call."""
        messages = []
        while self._read < self.announced:
            if not self._socket.poll(_ARRIVAL_S * 1000):
                raise PprankError("an output did not arrive at the tokenizer's socket")
            messages.append(self._recv(self._socket))
            self._read += 1
        return messages


class _Outbox:
    """A socket that counts the messages sent through it."""

    def __init__(self, socket: Socket, mail: _Mail) -> None:
        self._socket = socket
        self._mail = mail

    def send(self, *args: object, **kwargs: object) -> object:
        self._mail.announced += 1
        return self._socket.send(*args, **kwargs)

    def send_pyobj(self, *args: object, **kwargs: object) -> object:
        self._mail.announced += 1
        return self._socket.send_pyobj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Wire:
    """The tokenizer's side of the first stage's sockets."""

    def __init__(self, scheduler: Scheduler, side: TokenizerSide) -> None:
        self._side = side
        self._send = sender()
        ends = need(scheduler, "request_receiver")
        self.inbox = Inbox(need(ends, "recv_from_tokenizer"))
        self._outputs = _Mail(side.outputs)
        self._calls = None if side.rpc is None else _Mail(side.rpc)
        self.rpc: Inbox | None = None
        if self._calls is not None:  # one socket for both directions
            self.rpc = Inbox(_Outbox(need(ends, "recv_from_rpc"), self._calls))

    def send(self, message: Message) -> None:
        """Send a message to the Scheduler, which receives it in its next iteration."""
        self._send(self._side.requests, message)
        self.inbox.sent += 1

    def send_call(self, message: Message) -> None:
        """Send a message through the socket for remote calls."""
        if self.rpc is None:
            raise missing("PortArgs.rpc_ipc_name")
        self._send(self._side.rpc, message)
        self.rpc.sent += 1

    def receive(self) -> list[Message]:
        """Return all messages that the Scheduler has sent since the last call."""
        calls = [] if self._calls is None else self._calls.receive()
        return [*self._outputs.receive(), *calls]

    def outbox(self, socket: Socket) -> _Outbox:
        """Wrap one of the Scheduler's sockets so that messages sent through it are counted."""
        return _Outbox(socket, self._outputs)


class Attachment:
    """Installs a hook and counters in a Scheduler, and removes them again.

    `recorder`: records the control requests that this stage handles.
    """

    def __init__(
        self, scheduler: Scheduler, hook: SchedulerHook, recorder: ControlRecorder
    ) -> None:
        self._scheduler = scheduler
        self.wire: Wire | None = None
        receiver = need(scheduler, "request_receiver")
        if not _has(receiver, "scripted_scheduler_hook"):
            raise missing("SchedulerRequestReceiver.scripted_scheduler_hook")
        changes: dict[str, object] = {"scripted_scheduler_hook": hook}
        self._undo: list[Callable[[], object]] = []
        side = this_stage().started(scheduler).tokenizer_side
        if side is not None:
            self.wire = Wire(scheduler, side)
            changes |= self._count_messages(self.wire)
        self._set(scheduler, "scripted_scheduler_hook", hook)
        self._set(scheduler, "request_receiver", replace(receiver, **changes))
        self._record_control(recorder)

    def detach(self) -> None:
        """Restore the Scheduler."""
        while self._undo:
            self._undo.pop()()

    def _count_messages(self, wire: Wire) -> dict[str, Inbox]:
        """Count the messages sent; return the sockets for the request receiver."""
        channels = need(self._scheduler, "ipc_channels")
        for name in ("send_to_tokenizer", "send_to_detokenizer"):
            sender = need(channels, name)
            self._set(sender, "socket", wire.outbox(need(sender, "socket")))
        if wire.rpc is None:
            return {"recv_from_tokenizer": wire.inbox}
        self._set(self._scheduler, "ipc_channels", replace(channels, recv_from_rpc=wire.rpc))
        return {"recv_from_tokenizer": wire.inbox, "recv_from_rpc": wire.rpc}

    def _record_control(self, recorder: ControlRecorder) -> None:
        dispatch = need(self._scheduler, "_request_dispatcher")
        self._set(self._scheduler, "_request_dispatcher", recorder.dispatcher(dispatch))
        sender = need(need(self._scheduler, "ipc_channels"), "send_to_tokenizer")
        self._set(sender, "send_output", recorder.sender(need(sender, "send_output")))

    def _set(self, owner: object, name: str, value: object) -> None:
        need(owner, name)  # setting an attribute that SGLang lacks would have no effect
        self._undo.append(patch(owner, name, value))


def enter_loop(scheduler: Scheduler) -> None:
    """Run the event loop that SGLang chooses for this Scheduler. Blocks."""
    __tracebackhide__ = True
    device = current_rank().device
    if device != "cpu":
        import torch

        module = torch.get_device_module(device)
        module.set_device(device)  # current devices are per thread
        if device.startswith("cuda"):
            module.synchronize()  # a server's loop begins on an idle device, in streams of its own
    with thread_modes():
        need(scheduler, "run_event_loop")()


def exchanges_when_idle(scheduler: Scheduler) -> bool:
    """Return whether the stages of this Scheduler's loop exchange messages in each iteration.

    If so, one stage cannot do another iteration alone. True for pipelines of prefill and of decode.
    """
    pipeline = int(need(need(scheduler, "server_args"), "pp_size")) > 1
    return pipeline and role_of(scheduler) != "null"


@contextmanager
def leave_before_sending(scheduler: Scheduler) -> Iterator[None]:
    """In this block, end a loop that `exchanges_when_idle` where it would begin to send."""

    def leave(*_: object) -> None:
        raise LeaveLoop

    first = first_message_of_an_iteration(role_of(scheduler))
    need(scheduler, first)
    setattr(scheduler, first, leave)
    try:
        yield
    finally:
        delattr(scheduler, first)


def tells_each_dp_rank(scheduler: Scheduler) -> bool:
    """Return whether each DP rank gets control requests through a socket of its own."""
    name = "enable_dp_attention_local_control_broadcast"  # not in all releases
    return bool(getattr(need(scheduler, "server_args"), name, False))


def check_engine_args(scheduler: Scheduler) -> None:
    """Raise UsageError for server args with which the engine cannot work."""
    if not need(need(scheduler, "server_args"), "skip_tokenizer_init"):
        raise UsageError("engine: needs skip_tokenizer_init=True, the default: it speaks token ids")


def _has(instance: object, name: str) -> bool:
    return is_dataclass(instance) and any(field.name == name for field in fields(instance))
