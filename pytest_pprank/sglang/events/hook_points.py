"""Tells who wants to know when SGLang passes a seam, and changes nothing where nobody does.

A seam is a method of one of SGLang's classes (`events.hooks` has the table), or an operation of
torch.distributed, which the ledger notes anyway. The methods are wrapped while somebody listens.
SGLang's own HookRegistry (``sglang.srt.plugins``) is not used for it: it has no way to take a hook
out again, and looks through all modules for each one that it puts in (0.5.21). Hooks that users
have put in through it are passed as well: they lie beneath ours.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.oplog.file import Call as Operation
from pytest_pprank.oplog.record import ledger
from pytest_pprank.oplog.record.writer import ISSUED
from pytest_pprank.rank.patches import patch

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.facts import Facts
    from pytest_pprank.sglang.events.types import Event

BEFORE, AFTER = "before", "after"


@dataclass
class Passage:
    """One passing of a seam: a call of SGLang's, or an operation of torch.distributed.

    `args` begin with the object whose method it is. `result` is None before the call.
    """

    seam: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    result: Any = None
    operation: Operation | None = None
    _event: Event | None = None

    @property
    def event(self) -> Event:
        """What it means, decoded once, and only if somebody asks."""
        if self._event is None:
            self._event = taps.seam(self.seam).decode(self)
        return self._event

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All arguments but the object itself."""
        return (*self.args[1:], *(self.kwargs or {}).values())

    def argument(self, position: int, name: str) -> Any:
        """Return an argument by its position (0: the object itself) or its name; None without."""
        if position < len(self.args):
            return self.args[position]
        return (self.kwargs or {}).get(name)


Listener = Callable[[Passage], None]
Places = Callable[[], Iterable[tuple[type, str]]]


@dataclass(frozen=True)
class Seam:
    """A place that can be listened to.

    `decode` makes an event of a passage, and `facts` what `observe` tells of it. `places` names the
    methods (class, name): asked when somebody begins to listen, and again when a Scheduler has
    started; without any, the seam is the operations of torch.distributed in one `way`. `moment`:
    whether listeners are called before or after SGLang. `subject`: the object that it is about.
    `needs`: seams whose events are decoded, too, because this one's is compared with them.
    """

    name: str
    about: str
    decode: Callable[[Passage], Event]
    facts: Callable[[Passage], Facts]
    places: Places | None = None
    moment: str = AFTER
    way: str = ""
    subject: Callable[[Passage], object] = lambda passage: passage.args[0]
    needs: tuple[str, ...] = ()


class Taps:
    """The listeners of this process, by seam. One instance: `taps`."""

    def __init__(self) -> None:
        self._seams: dict[str, Seam] = {}
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        self._undo: dict[tuple[type, str], Callable[[], bool]] = {}
        self._inside = threading.local()

    def register(self, seams: Iterable[Seam]) -> None:
        """Make seams known by their names."""
        self._seams.update({seam.name: seam for seam in seams})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all seams."""
        return tuple(self._seams)

    @property
    def installed(self) -> tuple[str, ...]:
        """The methods that are wrapped now, as ``Class.method``."""
        return tuple(f"{owner.__name__}.{name}" for owner, name in self._undo)

    def seam(self, name: str) -> Seam:
        """Return a seam by its name; raises UsageError for one that there is not."""
        if name not in self._seams:
            raise UsageError(
                f"observe: there is no seam {name!r}{did_you_mean(name, self._seams)}; "
                f"seams: {', '.join(self._seams)}"
            )
        return self._seams[name]

    def listen(self, name: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` at each passing of a seam; returns what ends that.

        Raises SeamMissing for one that this SGLang lacks; then nobody listens.
        """
        seam = self.seam(name)
        end_ledger = None
        if seam.way:
            end_ledger = ledger.listen(functools.partial(_tell_operation, seam, listener))
        else:
            self._install(seam)
        self._listeners[name] = (*self._listeners.get(name, ()), listener)

        def end() -> None:
            if end_ledger is not None:
                end_ledger()
            left = [other for other in self._listeners[name] if other is not listener]
            self._listeners[name] = tuple(left)
            if not left:
                self._remove(seam)

        return end

    def refresh(self) -> None:
        """Wrap what has been imported since somebody began to listen."""
        for name, listeners in self._listeners.items():
            if listeners and not self._seams[name].way:
                self._install(self._seams[name])

    def _install(self, seam: Seam) -> None:
        assert seam.places is not None
        for owner, name in seam.places():
            if (owner, name) not in self._undo:
                original = owner.__dict__[name]
                tapped = self._wrap(seam, original)
                self._undo[owner, name] = patch(owner, name, tapped)

    def _remove(self, seam: Seam) -> None:
        assert seam.way or seam.places is not None
        places = [] if seam.places is None else list(seam.places())
        for place in places:
            back = self._undo.get(place)
            # else somebody has wrapped ours, and will put it back: it stays, and does nothing
            if back is not None and back():
                del self._undo[place]

    def _wrap(self, seam: Seam, original: object) -> object:
        function = _function_of(original)

        @functools.wraps(function)
        def tapped(*args: object, **kwargs: object) -> object:
            __tracebackhide__ = True
            listeners = self._listeners.get(seam.name, ())
            inside: list[object] = self._inside.__dict__.setdefault(seam.name, [])
            # an override that calls its base class's, or one method the other, passes once
            if not listeners or any(args[0] is owner for owner in inside):
                return function(*args, **kwargs)
            passage = Passage(seam.name, args, kwargs)
            if seam.moment == BEFORE:
                _tell(listeners, passage)
            inside.append(args[0])
            try:
                result = passage.result = function(*args, **kwargs)
            finally:
                inside.pop()
            if seam.moment == AFTER:
                _tell(listeners, passage)
            return result

        return classmethod(tapped) if isinstance(original, classmethod) else tapped


def _function_of(original: Any) -> Callable[..., object]:
    function: Callable[..., object] = original
    return original.__func__ if isinstance(original, classmethod) else function


def _tell(listeners: Iterable[Listener], passage: Passage) -> None:
    __tracebackhide__ = True
    for listener in listeners:
        listener(passage)


def _tell_operation(
    seam: Seam, listener: Listener, event: str, operation: Operation, *_: object
) -> None:
    if event == ISSUED and operation.way == seam.way:
        listener(Passage(seam.name, operation=operation))


taps = Taps()
