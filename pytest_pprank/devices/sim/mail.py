"""Sends clocks along with messages, so that a receiver is ordered after its sender's earlier work.

This matters when order comes back to a rank: rank 1 sends what it has made, rank 0 sends a reply,
and rank 1's copy stream, which has waited for the reply, is ordered after rank 1's own stream.

gloo transfers the data unchanged. Before each message, the sender stores its clock in the store of
the process group, under the channel and the message's number there. The receiver reads the clock
after it has waited for the data. A message between a device tensor and a host tensor (which has no
clock) finds none; then no order is known, and nothing is waited for.
"""

from __future__ import annotations

import itertools
import json
import os
import uuid
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pytest_pprank.devices.sim.streams import Clock, join

_SLOTS = 256
"""Number of clocks that a channel keeps; older ones are overwritten."""
_TRIES = 3
"""A value that was set is visible after at most one more round of the store's server."""
_NOTHING = "-"
_ALL = -1
_SINGLE = {"send": "dst", "recv_": "src", "recv_any_source_": "", "broadcast_": "root_rank",
           "scatter_": "root_rank", "gather_": "root_rank", "reduce_": "root_rank"}  # fmt: skip
_FROM_ONE, _TO_ONE = ("broadcast_", "scatter_"), ("gather_", "reduce_")

_foreign: dict[str, int] = {}
"""Streams of other processes by name, with numbers that no stream of this process has."""
_numbers = itertools.count(-100, -1)
_identity: tuple[int, str] = (0, "")


class Awaited(NamedTuple):
    """A clock that is available once an operation is done. `source`: a rank of the group."""

    channel: str
    number: int
    source: int


class Envelope(NamedTuple):
    """The clocks to read after one operation; `tag`: of a receive from any source, else -1."""

    box: Mailbox
    awaited: tuple[Awaited, ...]
    tag: int = -1


class Mailbox:
    """The clocks that are exchanged through one process group."""

    def __init__(self, group: Any) -> None:
        self._rank, self._size = group.rank(), group.size()
        self._store: Any = group.get_group_store() if self._size > 1 else None
        self._counts: Counter[str] = Counter()

    def exchange(self, operation: str, given: Mapping[str, Any], clock: Clock) -> Envelope | None:
        """Store `clock` for the receivers of this rank's data; return which clocks will arrive.

        Call before the operation. `operation`: c10d's name without namespace; `given`: its
        arguments.
        """
        if self._store is None:
            return None
        peer = given.get(_SINGLE.get(operation, ""), _ALL)
        if operation == "send":
            self._post(f"{self._rank}>{peer}.{given['tag']}", clock)
            return None
        if operation == "recv_":
            channel = f"{peer}>{self._rank}.{given['tag']}"
            return Envelope(self, (Awaited(channel, self._next(channel), peer),))
        if operation == "recv_any_source_":
            return Envelope(self, (), given["tag"])
        return self._meet(operation, peer, clock)

    def _meet(self, operation: str, root: int, clock: Clock) -> Envelope:
        """Store and await clocks for a collective."""
        number = self._next("all")
        if operation not in _FROM_ONE or root == self._rank:
            self._put(f"all.{self._rank}", number, clock)
        sources = [root] if operation in _FROM_ONE else range(self._size)
        if operation in _TO_ONE and root != self._rank:
            sources = []
        others = [rank for rank in sources if rank != self._rank]
        return Envelope(self, tuple(Awaited(f"all.{one}", number, one) for one in others))

    def collect(self, envelope: Envelope, work: Any) -> Clock:
        """Return the joined clocks of the senders; `work` must be done."""
        awaited = envelope.awaited
        if envelope.tag >= 0:
            source = work._source_rank()
            channel = f"{source}>{self._rank}.{envelope.tag}"
            awaited = (Awaited(channel, self._next(channel), source),)
        clock: Clock = {}
        for one in awaited:
            join(clock, self._get(one))
        return clock

    def _next(self, channel: str) -> int:
        self._counts[channel] += 1
        return self._counts[channel]

    def _post(self, channel: str, clock: Clock) -> None:
        self._put(channel, self._next(channel), clock)

    def _put(self, channel: str, number: int, clock: Clock) -> None:
        if self._store is not None:
            try:
                self._store.set(_key(channel, number), json.dumps([number, _named(clock)]))
            except torch.distributed.DistError:
                self._store = None  # its server is gone: the operation itself will fail

    def _get(self, awaited: Awaited) -> Clock:
        key = _key(awaited.channel, awaited.number)
        for _ in range(_TRIES):
            if self._store is None:
                break
            try:
                # reads the value without waiting for one to be set
                text = self._store.compare_set(key, _NOTHING, _NOTHING).decode()
            except torch.distributed.DistError:
                self._store = None
                break
            if text != _NOTHING:
                number, names = json.loads(text)
                if number == awaited.number:
                    return {_number(name): count for name, count in names.items()}
        return {}


_boxes: weakref.WeakKeyDictionary[Any, Mailbox] = weakref.WeakKeyDictionary()


def mailbox(group: Any) -> Mailbox:
    """Return the mailbox of a process group."""
    box = _boxes.get(group)
    if box is None:
        box = _boxes[group] = Mailbox(group)
    return box


def _key(channel: str, number: int) -> str:
    return f"pprank-clock/{channel}/{number % _SLOTS}"


def _own() -> str:
    """Return this process's unique name; a forked process gets a new one."""
    global _identity
    if _identity[0] != os.getpid():
        _identity = (os.getpid(), uuid.uuid4().hex[:12])
    return _identity[1]


def _named(clock: Clock) -> dict[str, int]:
    own, names = _own(), {number: name for name, number in _foreign.items()}
    return {names.get(number) or f"{own}.{number}": count for number, count in clock.items()}


def _number(name: str) -> int:
    process, _, number = name.partition(".")
    if process == _own():
        return int(number)
    if name not in _foreign:
        _foreign[name] = next(_numbers)
    return _foreign[name]
