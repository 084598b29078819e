"""Calls listeners when SGLang reaches a hook point; without listeners, SGLang is unchanged.

A hook point is a method of one of SGLang's classes (`events.hooks` has the table), or an operation
of torch.distributed, which the ledger records anyway. The methods are wrapped only while there are
listeners. SGLang's own HookRegistry (``sglang.srt.plugins``) is not used: it cannot remove a hook,
and searches all modules for each hook that it installs (0.5.21). Hooks that users have installed
through it keep working: our wrappers call them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
class HookCall:
    """One call at a hook point: of a method of SGLang, or an operation of torch.distributed.

    `args[0]` is the object whose method is called. `result` is None before the call.
    """

    point: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    result: Any = None
    operation: Operation | None = None
    endings: list[Callable[[], object]] = field(default_factory=list)
    """Called when the method has returned or raised; listeners before the call add to it."""
    _event: Event | None = None

    @property
    def event(self) -> Event:
        """The event that this call means, decoded once, and only if a listener asks."""
        if self._event is None:
            self._event = hook_points.point(self.point).decode(self)
        return self._event

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All arguments except the object itself."""
        return (*self.args[1:], *(self.kwargs or {}).values())

    def argument(self, position: int, name: str) -> Any:
        """Return an argument by its position (0: the object itself) or its name, else None."""
        if position < len(self.args):
            return self.args[position]
        return (self.kwargs or {}).get(name)


Listener = Callable[[HookCall], None]
Places = Callable[[], Iterable[tuple[type, str]]]


@dataclass(frozen=True)
class HookPoint:
    """A place that can be listened to.

    `decode`: makes an event of a call; `facts`: makes the facts that `observe` shows of it.
    `places`: returns the methods (class, name). It is called when the first listener is added, and
    again when a Scheduler has started. Without `places`, the hook point is torch.distributed's
    operations of one `way`. `moment`: whether listeners are called before or after the method.
    `subject`: returns the object that a call is about. `needs`: hook points whose events must also
    be decoded, because this one's event is compared with them.
    """

    name: str
    about: str
    decode: Callable[[HookCall], Event]
    facts: Callable[[HookCall], Facts]
    places: Places | None = None
    moment: str = AFTER
    way: str = ""
    subject: Callable[[HookCall], object] = lambda call: call.args[0]
    needs: tuple[str, ...] = ()


class HookPoints:
    """All hook points of this process, with their listeners. One instance: `hook_points`."""

    def __init__(self) -> None:
        self._points: dict[str, HookPoint] = {}
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        self._undo: dict[tuple[type, str], Callable[[], bool]] = {}
        self._inside = threading.local()

    def register(self, points: Iterable[HookPoint]) -> None:
        """Add hook points."""
        self._points.update({point.name: point for point in points})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all hook points."""
        return tuple(self._points)

    @property
    def installed(self) -> tuple[str, ...]:
        """The methods that are wrapped now, as ``Class.method``."""
        return tuple(f"{owner.__name__}.{name}" for owner, name in self._undo)

    def point(self, name: str) -> HookPoint:
        """Return the hook point of that name; raises UsageError if there is none."""
        if name not in self._points:
            raise UsageError(
                f"observe: there is no seam {name!r}{did_you_mean(name, self._points)}; "
                f"seams: {', '.join(self._points)}"
            )
        return self._points[name]

    def listen(self, name: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` at each call of a hook point; return a function that stops this.

        Raises SeamMissing if this SGLang lacks the hook point; then the listener is not added.
        """
        point = self.point(name)
        end_ledger = None
        if point.way:
            end_ledger = ledger.listen(functools.partial(_notify_of_operation, point, listener))
        else:
            self._install(point)
        self._listeners[name] = (*self._listeners.get(name, ()), listener)

        def end() -> None:
            if end_ledger is not None:
                end_ledger()
            left = [other for other in self._listeners[name] if other is not listener]
            self._listeners[name] = tuple(left)
            if not left:
                self._remove(point)

        return end

    def refresh(self) -> None:
        """Wrap methods of classes that were imported since their listeners were added."""
        for name, listeners in self._listeners.items():
            if listeners and not self._points[name].way:
                self._install(self._points[name])

    def _install(self, point: HookPoint) -> None:
        assert point.places is not None
        for owner, name in point.places():
            if (owner, name) not in self._undo:
                original = owner.__dict__[name]
                hooked = self._wrap(point, original)
                self._undo[owner, name] = patch(owner, name, hooked)

    def _remove(self, point: HookPoint) -> None:
        assert point.way or point.places is not None
        places = [] if point.places is None else list(point.places())
        for place in places:
            back = self._undo.get(place)
            # not restored if another wrapper is on top of ours: then ours stays, without effect
            if back is not None and back():
                del self._undo[place]

    def _wrap(self, point: HookPoint, original: object) -> object:
        function = _function_of(original)

        @functools.wraps(function)
        def hooked(*args: object, **kwargs: object) -> object:
            __tracebackhide__ = True
            listeners = self._listeners.get(point.name, ())
            inside: list[object] = self._inside.__dict__.setdefault(point.name, [])
            # an override that calls its base class, or another hooked method, counts as one call
            if not listeners or any(args[0] is owner for owner in inside):
                return function(*args, **kwargs)
            call = HookCall(point.name, args, kwargs)
            if point.moment == BEFORE:
                _notify(listeners, call)
            inside.append(args[0])
            try:
                result = call.result = function(*args, **kwargs)
            finally:
                inside.pop()
                for ending in call.endings:
                    ending()
            if point.moment == AFTER:
                _notify(listeners, call)
            return result

        return classmethod(hooked) if isinstance(original, classmethod) else hooked


def _function_of(original: Any) -> Callable[..., object]:
    function: Callable[..., object] = original
    return original.__func__ if isinstance(original, classmethod) else function


def _notify(listeners: Iterable[Listener], call: HookCall) -> None:
    __tracebackhide__ = True
    for listener in listeners:
        listener(call)


def _notify_of_operation(
    point: HookPoint, listener: Listener, event: str, operation: Operation, *_: object
) -> None:
    if event == ISSUED and operation.way == point.way:
        listener(HookCall(point.name, operation=operation))


hook_points = HookPoints()
