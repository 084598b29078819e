"""The ledger of copies between host and device: direction, blocking or not, size and stack."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch

from pytest_pprank.devices.sim import stacks
from pytest_pprank.devices.sim.reports import describe
from pytest_pprank.devices.sim.settings import settings


class How(str, Enum):
    """How the host takes part in a copy.

    ASYNC: not at all. STAGED: a pageable source was read at once, but the host did not wait for the
    device. BLOCKING: the host waited.
    """

    ASYNC = "async"
    STAGED = "staged"
    BLOCKING = "blocking"


class Transfer(NamedTuple):
    """One copy. `direction`: "H2D" or "D2H"; `mark`: the text set by `mark()` at that time."""

    direction: str
    how: How
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stack: stacks.Stack
    stream_id: int
    mark: str

    @property
    def frames(self) -> list[tuple[str, int, str]]:
        """(file, line, function) of user code, the innermost first."""
        return stacks.frames(self.stack)

    def __str__(self) -> str:
        file, line, name = (self.frames or [("?", 0, "?")])[0]
        tensor = describe(self.dtype, self.shape)
        return f"{self.direction} {self.how.value} {tensor} at {file}:{line} in {name}"


_MOST = 10_000
_transfers: deque[Transfer] = deque(maxlen=_MOST)
_mark = ""
_listeners: tuple[Callable[[Transfer], None], ...] = ()


def listen(listener: Callable[[Transfer], None]) -> Callable[[], None]:
    """Call `listener` with each copy from now on; return a function that stops this."""
    global _listeners
    _listeners = (*_listeners, listener)

    def end() -> None:
        global _listeners
        _listeners = tuple(one for one in _listeners if one is not listener)

    return end


def mark(text: str) -> str:
    """Set the mark of all transfers from now on; return the previous mark."""
    global _mark
    before, _mark = _mark, text
    return before


def record(
    direction: str, how: How, host: torch.Tensor, stream_id: int, stack: stacks.Stack
) -> None:
    """Record a copy from or to the host tensor `host`."""
    if settings.untracked:
        return
    transfer = Transfer(
        direction, how, host.nbytes, host.dtype, host.shape, stack, stream_id, _mark
    )
    _transfers.append(transfer)
    for listener in _listeners:
        listener(transfer)


def take_transfers() -> list[Transfer]:
    """Return the copies since the last call (the latest 10000 of them), and forget them."""
    taken = list(_transfers)
    _transfers.clear()
    return taken
