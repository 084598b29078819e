"""What comes out of the Scheduler: the part of each request in a message, and how parts add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message
    from pytest_pprank.sglang.driver.messages import Result

_LOGPROBS: Mapping[str, str] = {
    "logprobs": "output_token_logprobs",
    "prompt_logprobs": "input_token_logprobs",
    "top_logprobs": "output_top_logprobs",
    "prompt_top_logprobs": "input_top_logprobs",
    "token_ids_logprobs": "output_token_ids_logprobs",
    "prompt_token_ids_logprobs": "input_token_ids_logprobs",
}
"""Fields of a Result, by the fields of SGLang's message: values in NAME_val, tokens in NAME_idx.

An entry is one logprob, or a list of logprobs with a list of tokens.
"""


@dataclass(frozen=True)
class Output:
    """One request's part of an output message.

    `lists`: what is added to the lists of a Result, by field. `hidden_states`: all rows so far, as
    SGLang repeats them; None if the message has none.
    """

    rid: str
    token_ids: tuple[int, ...] = ()
    lists: Mapping[str, Sequence[float | dict[int, float]]] = field(default_factory=dict)
    hidden_states: list[list[float]] | None = None
    embedding: Sequence[float] = ()
    finish_reason: dict[str, Any] | None = None
    cached_tokens: int = 0
    retractions: int = 0


def outputs_of(message: Message) -> list[Output]:
    """Return the outputs in a message of the Scheduler; empty for any other kind of message."""
    io_struct = import_module("sglang.srt.managers.io_struct")
    if isinstance(message, need(io_struct, "AbortReq")):
        # a request that had not begun: the Scheduler returns the abort itself
        reason = message.finished_reason or {"type": "abort"}
        return [Output(str(message.rid), finish_reason=dict(reason))]
    if isinstance(message, need(io_struct, "BatchTokenIDOutput")):
        return [_output(message, index) for index in range(len(message.rids))]
    if isinstance(message, need(io_struct, "BatchEmbeddingOutput")):
        return [_embedding(message, index) for index in range(len(message.rids))]
    return []


def add_output(result: Result, output: Output) -> None:
    """Add to a Result what has come out since the last output of its request."""
    result.token_ids += output.token_ids
    for name, new in output.lists.items():
        # a row without logprobs: in the same batch another request has asked for them
        asked = getattr(result.asked, name.removeprefix("prompt_"), True)
        getattr(result, name).extend(new if asked else [entry for entry in new if entry != {}])
    if output.hidden_states is not None:
        result.hidden_states = output.hidden_states
    result.embedding += output.embedding
    result.finish_reason = output.finish_reason or result.finish_reason
    result.cached_tokens = output.cached_tokens or result.cached_tokens
    result.retractions = output.retractions or result.retractions


def _embedding(message: Message, index: int) -> Output:
    return Output(
        rid=message.rids[index],
        embedding=tuple(message.embeddings[index]),
        finish_reason=_reason(message, index),
        cached_tokens=int(message.cached_tokens[index]),
    )


def _reason(message: Message, index: int) -> dict[str, Any] | None:
    reason = message.finished_reasons[index]
    return None if reason is None else dict(reason)


def _output(message: Message, index: int) -> Output:
    states = message.output_hidden_states
    rows = states[index] if states else None
    return Output(
        rid=message.rids[index],
        token_ids=tuple(message.output_ids[index]),
        lists={name: list(_entries(message, prefix, index)) for name, prefix in _LOGPROBS.items()},
        hidden_states=None if rows is None else list(_rows(rows)),
        finish_reason=_reason(message, index),
        cached_tokens=int(message.cached_tokens[index]),
        retractions=int(message.retraction_counts[index]) if message.retraction_counts else 0,
    )


def _entries(message: Message, prefix: str, index: int) -> Iterator[float | dict[int, float]]:
    """Yield one request's logprobs of a kind; none for the first token of a prompt."""
    of_all = need(message, f"{prefix}_val")
    values = (of_all[index] if of_all else None) or ()
    tokens = need(message, f"{prefix}_idx")[index] if values else ()
    for value, token in zip(values, tokens, strict=True):
        if isinstance(value, (list, tuple)):
            yield dict(zip(token, value, strict=True))
        elif value is not None:
            yield value


def _rows(states: Iterable[Sequence[float] | Sequence[Sequence[float]]]) -> Iterator[list[float]]:
    """Yield a row per token: SGLang's list has a list of rows for a prompt, a row for a token."""
    for entry in states:
        if entry and isinstance(entry[0], Sequence):
            yield from (list(row) for row in entry if isinstance(row, Sequence))
        else:
            yield [value for value in entry if isinstance(value, float)]
