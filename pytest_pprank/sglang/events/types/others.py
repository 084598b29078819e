"""Events of logs, of layers of experts, and of the end of the event loops."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events.types.base import Event, Look, Stack


@dataclass(frozen=True)
class LogRecord(Event):
    """SGLang has logged something.

    `error`: the exception that was being handled, in words; `raised_at`: where it was raised, the
    innermost line first. `has_traceback`: whether the record itself contains the traceback.
    """

    text: str
    level: str
    is_error: bool
    site: Site
    has_traceback: bool = False
    error: str = ""
    raised_at: Stack = ()


@dataclass(frozen=True)
class WrongRow:
    """What a rank's experts have made of one token, and should not have.

    `experts`: those of this rank that the token has chosen. `nothing`: whether it is all zeros.
    """

    token: int
    experts: tuple[int, ...]
    nothing: bool


@dataclass(frozen=True)
class ExpertsRan(Event):
    """The experts of this rank have run, in a forward of a batch of `tokens` tokens.

    `own`: the numbers of this rank's experts among those of the layer. `wrong`: the tokens whose
    output differs from what follows from these experts' weights; none where reading the tensors
    needs a device copy, or the weights are not plain matrices.
    """

    layer: int
    own: range
    tokens: int
    wrong: tuple[WrongRow, ...] = ()


@dataclass(frozen=True)
class SentPrompt:
    """A request of prefill whose whole prompt was sent; `tokens`: how many that must be."""

    rid: str
    sender: Hashable
    tokens: int


@dataclass(frozen=True)
class Quiescent(Event):
    """The event loops have been left in good order, with all work done; no memory may be in use.

    `problems`: in words, what is not idle or not balanced. `sent`: the requests whose KV was sent;
    empty if pages have more than one token. `leftovers`: in words, the tables of SGLang that still
    name a request or its bootstrap room.
    """

    problems: Look[Sequence[str]]
    sent: Look[Sequence[SentPrompt]]
    leftovers: Look[Sequence[str]]
