"""Streams and events as vector clocks, which record what is ordered before what.

Each stream counts the work that the host has enqueued on it. A clock maps a stream's number to a
count; work with sequence number n on stream s is ordered before everything whose clock has
``clock[s] >= n``. The host also has a clock: the work that it has waited for.

All threads of a process share the host's clock: a wait of one thread counts for all.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch

from pytest_pprank.devices.sim.settings import NAME, settings

Clock = dict[int, int]

lock = threading.RLock()
"""Must be held to read or change clocks, records of accesses or copies in flight."""

_numbers = itertools.count(1)


class _Local(threading.local):
    """State of a thread: its current stream per device, the streams that it returns to when a
    ``with`` block ends, and what the thread itself has waited for.
    """

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.entered: list[Stream] = []
        self.waited: Clock = {}


_local = _Local()
_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


def join(into: Clock, other: Clock) -> None:
    """Merge the clock `other` into `into`."""
    for stream, count in other.items():
        if into.get(stream, 0) < count:
            into[stream] = count


class Host:
    """The work that the host has waited for; `version` counts the changes."""

    def __init__(self) -> None:
        self.clock: Clock = {}
        self.version = 0
        self._after: list[Callable[[], None]] = []

    def sees(self, clock: Clock) -> None:
        """Record that the host has waited for everything in `clock`."""
        with lock:  # first: another thread may be in untracked mode, which holds the lock
            if settings.untracked:
                return
            join(self.clock, clock)
            join(_local.waited, clock)
            self.version += 1
            for call in self._after:
                call()

    def now(self) -> Clock:
        """Return the clock of what the host has waited for so far."""
        with lock:
            return dict(self.clock)

    def of_this_thread(self, handed: Clock) -> Clock:
        """Return the clock of what this thread knows to be complete.

        That is `handed`, the clock when the thread was given its work, and the thread's own waits.
        """
        with lock:
            clock = dict(handed)
            join(clock, _local.waited)
            return clock

    def told(self, clock: Clock) -> None:
        """Record that another thread, which has waited for `clock`, gave this thread its work."""
        with lock:
            join(_local.waited, clock)

    def after_wait(self, call: Callable[[], None]) -> None:
        """Call `call` whenever the host has waited for something."""
        self._after.append(call)


host = Host()


class Stream:
    """A queue of work on one device; new work is ordered after what the host has waited for.

    As for torch's CUDA streams, there is no implicit order with the default stream.
    """

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.stream_id = next(_numbers)
        self.device_index = device_index(device)
        self.priority = priority
        self.clock: Clock = {self.stream_id: 0}
        self._host_version = -1
        _streams.add(self)

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, self.device_index)

    def tick(self) -> int:
        """Return the sequence number of a new piece of work."""
        clock = self.clock
        if self._host_version != host.version:
            join(clock, host.clock)
            self._host_version = host.version
        count = clock[self.stream_id] = clock[self.stream_id] + 1
        return count

    def wait_event(self, event: Event) -> None:
        """Order later work on this stream after the work that `event` has recorded."""
        event.wait(self)

    def wait_stream(self, other: Stream) -> None:
        """Order later work on this stream after the work that is on `other` now."""
        self.wait_event(other.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """Record the work on this stream so far in `event`, or in a new event."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Make the host wait for everything enqueued here."""
        host.sees(self.clock)

    def query(self) -> bool:
        """Return True: compute is eager. The call counts as a wait of the host."""
        self.synchronize()
        return True

    def __enter__(self) -> Stream:
        _local.entered.append(current_stream(self.device_index))
        set_stream(self)
        return self

    def __exit__(self, *_: object) -> None:
        set_stream(_local.entered.pop())

    @property
    def cuda_stream(self) -> int:
        """A number in place of a CUDA handle; SGLang compares such numbers."""
        return self.stream_id

    sim_stream = cuda_stream

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def __repr__(self) -> str:
        kind = "default stream" if self is _defaults.get(self.device_index) else "stream"
        return f"{kind} {self.stream_id} of {self.device}"


class Event:
    """A point in a stream's work. Waiting for an event that was never recorded orders nothing."""

    def __init__(self, device: Any = None, enable_timing: bool = False, **_: Any) -> None:
        self.device_index = device_index(device)
        self.enable_timing = enable_timing
        self._clock: Clock | None = None
        self._time = 0.0

    def record(self, stream: Stream | None = None) -> Event:
        """Record the work enqueued so far on `stream` (default: the current one)."""
        stream = stream or current_stream()
        with lock:
            stream.tick()
            self._clock = dict(stream.clock)
        self._time = time.perf_counter()
        return self

    def wait(self, stream: Stream | None = None) -> None:
        """Order later work on `stream` after the recorded work."""
        stream = stream or current_stream()
        if self._clock is not None:
            with lock:
                join(stream.clock, self._clock)

    def synchronize(self) -> None:
        """Make the host wait for the recorded work."""
        if self._clock is not None:
            host.sees(self._clock)

    def query(self) -> bool:
        """Return True: compute is eager. The call counts as a wait of the host."""
        self.synchronize()
        return True

    def elapsed_time(self, other: Event) -> float:
        """Return the milliseconds from this event's record to that of `other`."""
        return (other._time - self._time) * 1e3


class StreamContext:
    """``with torch.sim.stream(s)``; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> StreamContext:
        if self.stream is not None:
            self.stream.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.__exit__()


_defaults: dict[int, Stream] = {}


def current_device() -> int:
    """Return the number of the current device, which is always 0.

    torch's guard for a device in Python knows no other device, and ``.to("sim")`` asks that guard.
    """
    return 0


def set_device(device: Any) -> None:
    """Make a device the current one; raises RuntimeError for any device but 0."""
    if device_index(device):
        raise RuntimeError(
            f"{NAME}: the current device is always {NAME}:0; name another one ({NAME}:"
            f"{device_index(device)}) where a tensor or a stream is made"
        )


def device_index(device: Any) -> int:
    """Return the number of a device: int, string, torch.device or None (the current one)."""
    if device is None:
        return current_device()
    index = device if isinstance(device, int) else torch.device(device).index
    index = current_device() if index is None or index < 0 else index
    if index >= settings.devices:
        raise RuntimeError(
            f"{NAME}:{index}: invalid device ordinal, there are {settings.devices} "
            "(PPRANK_SIM_DEVICES)"
        )
    return int(index)


def default_stream(device: Any = None) -> Stream:
    """Return a device's default stream."""
    index = device_index(device)
    stream = _defaults.get(index)
    if stream is None:
        stream = _defaults[index] = Stream(index)
    return stream


def current_stream(device: Any = None) -> Stream:
    """Return this thread's current stream of a device."""
    stream = _local.streams.get(device) if type(device) is int else None
    if stream is None:
        index = device_index(device)
        stream = _local.streams.get(index)
        if stream is None:
            stream = default_stream(index)
            _local.streams[index] = stream
    return stream


def set_stream(stream: Stream | None) -> None:
    """Make `stream` this thread's current one on its device."""
    if stream is None:
        return
    _local.streams[stream.device_index] = stream


def synchronize(device: Any = None) -> None:
    """Make the host wait for all streams of a device."""
    index = device_index(device)
    with lock:
        clock: Clock = {}
        for stream in list(_streams):
            if stream.device_index == index:
                join(clock, stream.clock)
        host.sees(clock)
