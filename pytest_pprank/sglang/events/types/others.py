"""Events of logs, and of the end of a run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.events.types.base import Event, Look, Stack


@dataclass(frozen=True)
class LogRecord(Event):
    """SGLang has logged something.

    `error`: what is being handled meanwhile, in words; `raised_at`: where that was raised, the
    innermost line first. `has_traceback`: whether the record itself comes with it.
    """

    text: str
    level: str
    is_error: bool
    site: Site
    has_traceback: bool = False
    error: str = ""
    raised_at: Stack = ()


@dataclass(frozen=True)
class SentPrompt:
    """A request of prefill's whose prompt was sent as a whole: how many tokens that must be."""

    rid: str
    sender: Hashable
    tokens: int


@dataclass(frozen=True)
class Quiescent(Event):
    """The event loops have been left in good order, with all work done: nothing may be held.

    `problems`: what is not idle or not balanced, in words. `sent`: the requests whose KV was sent,
    none where pages have more than one token.
    """

    problems: Look[Sequence[str]]
    sent: Look[Sequence[SentPrompt]]
