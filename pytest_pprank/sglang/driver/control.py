"""Control requests on their way: sent to the first stage, handled on all, answered once.

A stage notes each request that its Scheduler has handled, and what it answered. Of these answers
SGLang sends only the first stage's; the others', which nobody gets, show whether the stages agree.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.compat.messages import rid_of
from pytest_pprank.sglang.driver.control_requests import (
    ANSWERS,
    Kind,
    control_request,
    kind_named,
    verdicts,
)
from pytest_pprank.sglang.driver.series import StagesDiffer

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message

_RID = "pprank-control-"
_SHOWN = 120


class AnsweredTwice(AssertionError):
    """A control request was handled twice on a stage, or there are more answers than requests."""


@dataclass(frozen=True)
class Noted:
    """What became of the control request `rid` on a stage: handled, or `answered` by `answer`."""

    rid: str
    answered: bool = False
    answer: object = None


@dataclass(frozen=True)
class News:
    """What a stage tells in a meeting; `came`: the answers that came out of its socket."""

    noted: tuple[Noted, ...]
    came: tuple[Message, ...] = ()


class ControlNotes:
    """Stands between the Scheduler of this stage and what handles and answers its requests."""

    def __init__(self) -> None:
        self._fresh: list[Noted] = []
        self._returned: object = None

    def fresh(self) -> tuple[Noted, ...]:
        """Return what has come since the last call."""
        fresh = tuple(self._fresh)
        self._fresh.clear()
        return fresh

    def dispatcher(self, inner: Callable[[object], object]) -> Callable[[object], object]:
        """Return what takes the place of the Scheduler's dispatcher."""

        def dispatch(request: object) -> object:
            answer = inner(request)
            if (rid := _rid_of(request)) is not None:
                self._fresh.append(Noted(rid))
                if answer is not None:
                    self._fresh.append(Noted(rid, answered=True, answer=answer))
                    self._returned = answer
            return answer

        return dispatch

    def sender(self, inner: Callable[..., object]) -> Callable[..., object]:
        """Return what takes the place of the sender's method: it sees answers that come later."""

        def send_output(output: object, recv_obj: object = None) -> object:
            rid = _rid_of(recv_obj)
            if rid is not None and output is not self._returned:
                self._fresh.append(Noted(rid, answered=True, answer=output))
            self._returned = None
            return inner(output, recv_obj)

        return send_output


@dataclass
class Control:
    """One control request; the same on all ranks after each call of the engine.

    `answers`: by role, what came out of SGLang's socket; of `engine` the role is ``pp``. `told`: by
    role and stage, what each stage answered to it, whether or not it was sent. Both empty where
    the request is one that is not answered. `handled`: by role, the stages that have handled it.
    """

    name: str
    fields: Mapping[str, object]
    rid: str = field(repr=False)
    kind: Kind = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    run: Callable[[Control, int | None], None] = field(repr=False)
    answers: dict[str, Message] = field(default_factory=dict)
    told: dict[str, dict[int, object]] = field(default_factory=lambda: defaultdict(dict))
    handled: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    @property
    def answer(self) -> Any:
        """The answer, None as long as it has not come. Raises UsageError for several roles."""
        if len(self.sizes) > 1:
            roles = " and ".join(self.sizes)
            raise UsageError(f"{self}: sent to {roles}; each has its answer in `answers`")
        return next(iter(self.answers.values()), None)

    @property
    def done(self) -> bool:
        """Whether every stage has handled it, and the answer, if one is due, has come."""
        return not any(self.due())

    def wait(self, max_iterations: int | None = None) -> Any:
        """Step until it is `done`; returns the answer of a request to one role, else None.

        A call of all ranks. Raises EngineStalled where nothing moves any more, or it is not done
        after `max_iterations`.
        """
        __tracebackhide__ = True
        self.run(self, max_iterations)
        return self.answer if len(self.sizes) == 1 else None

    def due(self) -> Iterator[str]:
        """Yield, in words, what is still to come."""
        answered = self.kind.answer is not None
        for role, size in self.sizes.items():
            for stage in range(size):
                if stage not in self.handled[role]:
                    yield f"{_stage(stage, role)} has not handled it"
                elif answered and stage not in self.told[role]:
                    yield f"{_stage(stage, role)} has handled it and not answered"
            if answered and role not in self.answers:
                yield "no answer came" + (f" of {role}" if role != "pp" else "")

    def __str__(self) -> str:
        return f"control({self.name!r})"


class ControlDesk:
    """All control requests of a test."""

    def __init__(self) -> None:
        self._serial = itertools.count()
        self._all: dict[str, Control] = {}
        self._open: list[Control] = []
        self._sent: dict[tuple[str, str], deque[Control]] = defaultdict(deque)
        self._wrong: list[str] = []

    def new(
        self,
        name: str,
        fields: Mapping[str, object],
        sizes: Mapping[str, int],
        run: Callable[[Control, int | None], None],
        call: str,
    ) -> tuple[Control, Message]:
        """Return a request to the roles of `sizes`, and its message. Raises UsageError.

        `run`: steps until it is done. `call`: who asks, for errors.
        """
        kind = kind_named(name, call)
        rid = f"{_RID}{next(self._serial)}"
        message = control_request(kind, rid, fields, call)
        control = Control(name, dict(fields), rid, kind, sizes, run)
        self._all[rid] = control
        self._open.append(control)
        return control, message

    @property
    def open(self) -> tuple[Control, ...]:
        """The requests that are not done."""
        return tuple(self._open)

    def take_in(self, role: str, stage: int, news: News) -> None:
        """Add what a stage has told."""
        for noted in news.noted:
            control = self._all[noted.rid]
            held: Any = control.told[role] if noted.answered else control.handled[role]
            if stage in held:
                verb = "answered" if noted.answered else "handled"
                self._wrong.append(f"{_stage(stage, role)} has {verb} {control} twice")
            elif not noted.answered:
                control.handled[role].add(stage)
            else:
                control.told[role][stage] = noted.answer
                if stage == 0:  # what it sends comes out in this order
                    self._sent[role, type(noted.answer).__name__].append(control)
        for message in news.came:
            sent = self._sent[role, type(message).__name__]
            if sent:
                sent.popleft().answers[role] = message
            else:
                what = f"has sent more answers than it was asked for: {message}"
                self._wrong.append(f"{_stage(stage, role)} {what}")

    def close(self) -> None:
        """Take away what is done. Raises AnsweredTwice, and StagesDiffer where the stages of a role
        have not answered alike.
        """
        __tracebackhide__ = True
        done = [control for control in self._open if control.done]
        self._open = [control for control in self._open if not control.done]
        wrong, self._wrong = self._wrong, []
        if wrong:
            raise AnsweredTwice("\n".join(wrong))
        for control in done:
            for role, told in control.told.items():
                if len(set(verdicts(told).values())) > 1:
                    of_role = "" if role == "pp" else f" of {role}"
                    head = f"the stages{of_role} did not answer {control} alike:"
                    lines = [f"stage {stage}: {told[stage]}" for stage in sorted(told)]
                    raise StagesDiffer("\n  ".join([head, *lines]))

    def give_up(self, control: Control) -> None:
        """Wait no more for a request."""
        self._open = [other for other in self._open if other is not control]

    def state(self) -> Iterator[str]:
        """Yield, in words, what the requests wait for."""
        yield from (f"  {control}: {'; '.join(control.due())}" for control in self._open)


def answers_in(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return those of the Scheduler's messages that answer control requests."""
    return tuple(message for message in messages if type(message).__name__ in ANSWERS)


def shown_control(name: str, fields: Mapping[str, object]) -> str:
    """Describe a request so that ranks that ask for another one are seen to differ."""
    text = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in fields.items())])
    cut = f"{text[:_SHOWN]}..., hash {zlib.crc32(text.encode()) & 0xFFFF:04x}"
    return f"control({text if len(text) <= _SHOWN else cut})"


def _stage(stage: int, role: str) -> str:
    return f"stage {stage}" + (f" of {role}" if role != "pp" else "")


def _rid_of(message: object) -> str | None:
    """Return the id of one of our requests, None for any other."""
    rid = rid_of(message)
    return rid if isinstance(rid, str) and rid.startswith(_RID) else None
