"""The device's findings: one per pair of code places, reported with both stacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from pytest_pprank.devices.sim import stacks
from pytest_pprank.devices.sim.names import name_of
from pytest_pprank.devices.sim.settings import settings


class Kind(str, Enum):
    """The kind of error in a pair of accesses."""

    UNORDERED = "unordered"
    COPY_IN_FLIGHT = "copy in flight"
    STAGING_REWRITTEN = "staging rewritten"
    READ_BEFORE_SYNC = "read before sync"
    FREED_IN_USE = "freed in use"
    RAW_ACCESS = "raw access"


_CURES = {
    Kind.UNORDERED: "let the second stream wait for the first: stream.wait_stream(other), or "
    "event.record() after the first access and stream.wait_event(event) before the second",
    Kind.COPY_IN_FLIGHT: "let the reading stream wait for the stream of the copy (wait_stream, or "
    "an event recorded after the copy)",
    Kind.STAGING_REWRITTEN: "use a fresh pinned tensor per copy, or synchronize an event recorded "
    "after the copy before the buffer is written again",
    Kind.READ_BEFORE_SYNC: "synchronize an event recorded after the copy (or its stream) before "
    "the host reads the result",
    Kind.FREED_IN_USE: "call tensor.record_stream(stream) for the other stream, or keep the tensor "
    "until its own stream has waited for that stream",
    Kind.RAW_ACCESS: "synchronize the stream (or an event recorded on it) before the memory is "
    "handed to something that works by address",
}


class SimRaceError(RuntimeError):
    """In strict mode: the access that was just made is not ordered after an earlier one."""


@dataclass(frozen=True)
class Access:
    """One side of a finding. `frames`: (file, line, function), the innermost first."""

    what: str
    where: str
    frames: tuple[tuple[str, int, str], ...]

    def lines(self, most: int = 8) -> list[str]:
        """Return the access as lines of text."""
        places = [f"    {file}:{line} in {name}" for file, line, name in self.frames[:most]]
        return [f"{self.what}, {self.where}", *(places or ["    (no Python frame of user code)"])]


@dataclass(frozen=True)
class Race:
    """An unordered pair of accesses; consists of plain values that can be pickled.

    `tensor`: dtype, shape and, if known, the name of the field. checks.device_order turns it into
    a sanitizer's finding.
    """

    kind: Kind
    tensor: str
    first: Access
    second: Access

    @property
    def cure(self) -> str:
        """The usual fix."""
        return _CURES[self.kind]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.kind.value}: {self.tensor}",
                *(f"  {line}" for line in ("first: " + self.first.lines()[0],)),
                *(f"  {line}" for line in self.first.lines()[1:]),
                *(f"  {line}" for line in ("second: " + self.second.lines()[0],)),
                *(f"  {line}" for line in self.second.lines()[1:]),
                f"  usual cure: {self.cure}",
            ]
        )


@dataclass
class Side:
    """One access as it is recorded: cheap, not yet converted to text."""

    what: str
    where: str
    stack: stacks.Stack


@dataclass
class _Raw:
    kind: Kind
    tensor: str
    first: Side
    second: Side


Listener = Callable[[Race], None]
_LOOKS = 16
"""How often a pair of code places is examined.

Each time a name is searched for, which may take milliseconds.
"""


class Reports:
    """The findings of this process since they were last taken."""

    def __init__(self) -> None:
        self._raw: list[_Raw] = []
        self._seen: set[tuple[object, ...]] = set()
        self._times: Counter[tuple[object, ...]] = Counter()
        """How often each pair of code places was examined."""
        self._listeners: tuple[Listener, ...] = ()

    def add(
        self, kind: Kind, tensor: str, addresses: Sequence[int], first: Side, second: Side
    ) -> None:
        """Record a finding, once per pair of code places and name of the tensor.

        Numbers in names do not count. `addresses`: those of the storages concerned; a name for
        them is searched in the running functions. Raises SimRaceError in strict mode.
        """
        places = (kind, stacks.place(first.stack), stacks.place(second.stack))
        self._times[places] += 1
        if self._times[places] > _LOOKS and not settings.strict:
            return
        name = name_of(addresses)
        raw = _Raw(kind, f"{name} ({tensor})" if name else tensor, first, second)
        key = (*places, re.sub(r"\d+", "N", raw.tensor))
        if key not in self._seen:
            self._seen.add(key)
            self._raw.append(raw)
            for listener in self._listeners:
                listener(_finding(raw))
        if settings.strict:
            raise SimRaceError(str(_finding(raw)))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Forget earlier findings, and call `listener` with each new one; return what stops this.

        The listener is called in the thread that made the second access.
        """
        self._forget()
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return end

    def take(self) -> list[Race]:
        """Return the findings since the last call, and forget them."""
        raw = self._raw
        self._forget()
        return [_finding(one) for one in raw]

    def _forget(self) -> None:
        self._raw = []
        self._seen.clear()
        self._times.clear()

    def __len__(self) -> int:
        return len(self._raw)


def _finding(raw: _Raw) -> Race:
    return Race(raw.kind, raw.tensor, access(raw.first), access(raw.second))


def access(side: Side) -> Access:
    """Convert an access to readable form."""
    return Access(side.what, side.where, tuple(stacks.frames(side.stack)))


def describe(dtype: object, shape: Sequence[int]) -> str:
    """Format dtype and shape as the rest of the project does: ``int64[5, 3]``."""
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


reports = Reports()


def findings() -> list[Race]:
    """Return the device's findings since the last call, and forget them."""
    return reports.take()
