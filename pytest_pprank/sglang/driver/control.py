"""Tracks control requests: sent to the first stage, handled on all stages, answered once.

Each stage records the requests that its Scheduler has handled, and its answers. SGLang sends only
the first stage's answer. The other stages' answers, which SGLang drops, show whether the stages
agree.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
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
from pytest_pprank.sglang.driver.pauses import PauseWatch
from pytest_pprank.sglang.driver.series import StagesDiffer

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message
    from pytest_pprank.topology import Role

_RID = "pprank-control-"
_SHOWN = 120


class AnsweredTwice(AssertionError):
    """A stage handled a control request twice, or sent more answers than were requested."""


@dataclass(frozen=True)
class ControlEvent:
    """A stage's Scheduler has handled the control request `rid`, or `answered` it with `answer`.

    `iteration`: of the stage's loop, in which it was handled.
    """

    rid: str
    answered: bool = False
    answer: object = None
    iteration: int = 0


@dataclass(frozen=True)
class ControlReport:
    """A stage's new events since the last step; `answers`: those received from its socket."""

    events: tuple[ControlEvent, ...]
    answers: tuple[Message, ...] = ()


class ControlRecorder:
    """Records which control requests this stage's Scheduler handles and answers.

    `iteration`: returns the number of the current iteration.
    """

    def __init__(self, iteration: Callable[[], int]) -> None:
        self._iteration = iteration
        self._new: list[ControlEvent] = []
        self._returned: object = None

    def take_new(self) -> tuple[ControlEvent, ...]:
        """Return the events since the last call."""
        new = tuple(self._new)
        self._new.clear()
        return new

    def dispatcher(self, inner: Callable[[object], object]) -> Callable[[object], object]:
        """Wrap the Scheduler's request dispatcher, to record what it handles and returns."""

        @wraps(inner)
        def dispatch(request: object) -> object:
            answer = inner(request)
            if (rid := _rid_of(request)) is not None:
                self._new.append(ControlEvent(rid, iteration=self._iteration()))
                if answer is not None:
                    self._new.append(ControlEvent(rid, answered=True, answer=answer))
                    self._returned = answer
            return answer

        return dispatch

    def sender(self, inner: Callable[..., object]) -> Callable[..., object]:
        """Wrap the sender's method, to record answers that are sent later than their request."""

        def send_output(output: object, recv_obj: object = None) -> object:
            rid = _rid_of(recv_obj)
            if rid is not None and output is not self._returned:
                self._new.append(ControlEvent(rid, answered=True, answer=output))
            self._returned = None
            return inner(output, recv_obj)

        return send_output


@dataclass
class Control:
    """One control request; the same on all ranks after each call of the engine.

    `answers`: by role, the message that came out of SGLang's socket; `engine` uses the role ``pp``.
    With several DP ranks it is that of the first; `dp_answers` has all, by role and DP rank.
    `told`: by role and stage, what each stage answered, whether or not SGLang sent it. All are
    empty for a kind of request that has no answer. `handled`: by role, the stages that have handled
    the request. Where stages have several ranks, each rank counts as a stage.
    """

    name: str
    fields: Mapping[str, object] = field(repr=False)  # may be megabytes of weights
    rid: str = field(repr=False)
    kind: Kind = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    run: Callable[[Control, int | None], None] = field(repr=False)
    roles: Mapping[str, Role] = field(default_factory=dict, repr=False)
    dp_answers: dict[str, dict[int, Message]] = field(default_factory=lambda: defaultdict(dict))
    told: dict[str, dict[int, object]] = field(default_factory=lambda: defaultdict(dict))
    handled: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    @property
    def answers(self) -> dict[str, Message]:
        """The answer of each role that has answered; with several DP ranks, of the first."""
        return {role: came[0] for role, came in self.dp_answers.items() if 0 in came}

    @property
    def answer(self) -> Any:
        """The answer; None until it has come. Raises UsageError if there are several roles."""
        if len(self.sizes) > 1:
            roles = " and ".join(self.sizes)
            raise UsageError(f"{self}: sent to {roles}; each has its answer in `answers`")
        return next(iter(self.answers.values()), None)

    @property
    def done(self) -> bool:
        """Whether every stage has handled the request and the answer, if any, has come."""
        return not any(self.due())

    def wait(self, max_iterations: int | None = None) -> Any:
        """Step until the request is `done`; return its answer, or None if it has several roles.

        A call of all ranks. Raises EngineStalled if nothing makes progress any more, or if the
        request is not done after `max_iterations`.
        """
        __tracebackhide__ = True
        self.run(self, max_iterations)
        return self.answer if len(self.sizes) == 1 else None

    def due(self) -> Iterator[str]:
        """Yield, in words, what has not happened yet."""
        answered = self.kind.answer is not None
        for role, size in self.sizes.items():
            for stage in range(size):
                if stage not in self.handled[role]:
                    yield f"{self.place(stage, role)} has not handled it"
                elif answered and stage not in self.told[role] and not self._silent(stage):
                    yield f"{self.place(stage, role)} has handled it and not answered"
            yield from self._missing(role) if answered else ()

    def place(self, number: int, role: str) -> str:
        """Return what to call rank `number` of a role."""
        of = self.roles[role]
        named = of.place_in_role(of.first + number)
        return named if role == "pp" else f"{named} of {role}"

    def _missing(self, role: str) -> Iterator[str]:
        """Yield, in words, which answers of a role have not come: one of each DP rank."""
        several = self.roles[role].shares.dp
        for dp_rank in range(1 if self.kind.by_first else several):
            if dp_rank not in self.dp_answers[role]:
                of_dp = f" of dp {dp_rank}" if several > 1 else ""
                yield "no answer came" + of_dp + (f" of {role}" if role != "pp" else "")

    def _silent(self, stage: int) -> bool:
        return self.kind.by_first and stage > 0

    def __str__(self) -> str:
        return f"control({self.name!r})"


class ControlTracker:
    """All control requests of a test.

    `roles`: by name. `handled`: the names of the message classes that the
    Scheduler handles. `pauses`: which requests pause stages.
    """

    def __init__(self, roles: Mapping[str, Role]) -> None:
        self.handled: Container[str] = ()
        self.pauses = PauseWatch()
        self._roles = roles
        self._serial = itertools.count()
        self._all: dict[str, Control] = {}
        self._open: list[Control] = []
        self._sent: dict[tuple[str, int, str], deque[Control]] = defaultdict(deque)
        self._wrong: list[str] = []

    def new(
        self,
        name: str,
        fields: Mapping[str, object],
        sizes: Mapping[str, int],
        run: Callable[[Control, int | None], None],
        call: str,
    ) -> tuple[Control, Message]:
        """Create a request to the roles of `sizes`; return it and its message.

        `run`: steps until the request is done. `call`: the caller's name, for errors. Raises
        UsageError.
        """
        kind = kind_named(name, call, self.handled)
        rid = f"{_RID}{next(self._serial)}"
        message = control_request(kind, rid, fields, call)
        control = Control(name, dict(fields), rid, kind, sizes, run, self._roles)
        self._all[rid] = control
        self._open.append(control)
        return control, message

    @property
    def open(self) -> tuple[Control, ...]:
        """The requests that are not done."""
        return tuple(self._open)

    def record(self, role: str, stage: int, report: ControlReport) -> None:
        """Add the events that rank number `stage` of a role has reported."""
        for event in report.events:
            control = self._all[event.rid]
            known: Any = control.told[role] if event.answered else control.handled[role]
            if stage in known:
                verb = "answered" if event.answered else "handled"
                self._wrong.append(f"{control.place(stage, role)} has {verb} {control} twice")
            elif not event.answered:
                control.handled[role].add(stage)
                self.pauses.handled(role, stage, control.name, event.iteration)
            else:
                control.told[role][stage] = event.answer
                # the first stage's answers come out of the socket in this order
                self._sent[role, stage, type(event.answer).__name__].append(control)
        for message in report.answers:
            sent = self._sent[role, stage, type(message).__name__]
            if sent:
                of = self._roles[role]
                sent.popleft().dp_answers[role][of.place(of.first + stage).dp] = message
            else:
                who = "the first stage" + (f" of {role}" if role != "pp" else "")
                self._wrong.append(f"{who} has sent more answers than it was asked for: {message}")

    def close(self) -> None:
        """Drop the requests that are done.

        Raises AnsweredTwice, or StagesDiffer if the stages of a role gave different answers.
        """
        __tracebackhide__ = True
        done = [control for control in self._open if control.done]
        self._open = [control for control in self._open if not control.done]
        wrong, self._wrong = self._wrong, []
        if wrong:
            raise AnsweredTwice("\n".join(wrong))
        for control in done:
            for role, told in ({} if control.kind.by_first else control.told).items():
                if len(set(verdicts(told).values())) > 1:
                    of_role = "" if role == "pp" else f" of {role}"
                    head = f"the stages{of_role} did not answer {control} alike:"
                    of = self._roles[role]
                    lines = [f"{of.place_in_role(of.first + n)}: {told[n]}" for n in sorted(told)]
                    raise StagesDiffer("\n  ".join([head, *lines]))

    def abandon(self, control: Control) -> None:
        """Stop waiting for a request."""
        self._open = [other for other in self._open if other is not control]

    def state(self) -> Iterator[str]:
        """Yield, in words, what the open requests wait for."""
        yield from (f"  {control}: {'; '.join(control.due())}" for control in self._open)


def answers_in(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return those of the Scheduler's messages that answer control requests."""
    return tuple(message for message in messages if type(message).__name__ in ANSWERS)


def shown_control(name: str, fields: Mapping[str, object]) -> str:
    """Describe a request; different requests get different texts, so ranks can compare them."""
    text = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in fields.items())])
    cut = f"{text[:_SHOWN]}..., hash {zlib.crc32(text.encode()) & 0xFFFF:04x}"
    return f"control({text if len(text) <= _SHOWN else cut})"


def _rid_of(message: object) -> str | None:
    """Return the message's id if it is one of our control requests, else None."""
    rid = rid_of(message)
    return rid if isinstance(rid, str) and rid.startswith(_RID) else None
