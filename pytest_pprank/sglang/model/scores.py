"""Compares what a Result has beside tokens with the reference: logprobs, states, embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_pprank.sglang.driver.messages import Result
from pytest_pprank.sglang.model.chooser import Chooser
from pytest_pprank.sglang.model.loaded import hidden_states_of, logits_of, tie_of

if TYPE_CHECKING:
    import torch

_LOOSE = 10
"""A logprob may be off by this many ties: it sums over the vocabulary."""
_MOST_HIDDEN = 1e-2
"""How far a hidden state may be off, in float32 with tie 1e-4; else that many ties more."""


def score_findings(result: Result, chooser: Chooser) -> Iterator[str]:
    """Yield what is wrong with a Result's logprobs and hidden states; its tokens are right."""
    if result.hidden_states:
        yield from _hidden_states(result)
    asked = result.asked
    if asked.top_logprobs or asked.token_ids_logprobs:
        whole = [*result.prompt, *result.token_ids][:-1]
        logits = logits_of(result.model_path, whole, len(result.token_ids))
        table = chooser.logits(logits, result.token_ids).log_softmax(-1)
        top, chosen = result.top_logprobs, result.token_ids_logprobs
        yield from _asked_for(result, "output token", 0, (top, chosen), table)
    if asked.prompt_logprobs and (asked.top_logprobs or asked.token_ids_logprobs):
        table = logits_of(result.model_path, result.prompt[:-1]).log_softmax(-1)
        top, chosen = result.prompt_top_logprobs, result.prompt_token_ids_logprobs
        yield from _asked_for(result, "prompt token", 1, (top, chosen), table)


def embedding_findings(result: Result) -> Iterator[str]:
    """Yield what is wrong with a Result's embedding: the last token's hidden state, of length 1."""
    import torch

    if not result.embedding:
        yield f"{result.rid}: no embedding came out (finish reason: {result.finish_reason})"
        return
    last = hidden_states_of(result.model_path, result.prompt)[-1]
    off = float((torch.tensor(result.embedding) - last / last.norm()).abs().max())
    if not off <= _LOOSE * tie_of(result.model_path):
        yield f"{result.rid}: the embedding of its {len(result.prompt)} tokens is off by {off:.5f}"


def _asked_for(
    result: Result,
    what: str,
    first: int,
    found: tuple[Sequence[dict[int, float]], Sequence[dict[int, float]]],
    table: torch.Tensor,
) -> Iterator[str]:
    """Compare what is `found`: logprobs of the likeliest tokens, and of those asked for."""
    if result.asked.top_logprobs:
        yield from _by_token(result, what, first, found[0], table, likeliest=True)
    if result.asked.token_ids_logprobs:
        yield from _by_token(result, what, first, found[1], table)


def _by_token(
    result: Result,
    what: str,
    first: int,
    found: Sequence[dict[int, float]],
    table: torch.Tensor,
    *,
    likeliest: bool = False,
) -> Iterator[str]:
    """Compare logprobs by token with the rows of `table`; the first row is for token `first`."""
    name = "logprobs of the likeliest tokens" if likeliest else "logprobs of the tokens asked for"
    rows = sum(map(bool, found))
    if not rows == len(found) == len(table):
        yield f"{result.rid}: {name} for {rows} {what}s of {len(table)}"
        return
    most = _LOOSE * tie_of(result.model_path)
    for index, values in enumerate(found):
        row = table[index]
        wrong = [
            f"{value:.5f} for {token}, the reference has {float(row[token]):.5f}"
            for token, value in values.items()
            if not _near(value, float(row[token]), most)
        ]
        if likeliest and not wrong:
            best = row.topk(len(values)).values.tolist()
            pairs = zip(sorted(values.values(), reverse=True), best, strict=True)
            missed = [place for place, (have, want) in enumerate(pairs) if abs(have - want) > most]
            wrong = [f"not the likeliest: number {place} is missing" for place in missed]
        if wrong:
            yield f"{result.rid}: {name} at {what} {first + index}: {'; '.join(wrong)}"
            return


def _near(value: float, expected: float, most: float) -> bool:
    # a forbidden token: SGLang replaces minus infinity by the least float
    return abs(value - expected) <= most or max(value, expected) < -1e30


def _hidden_states(result: Result) -> Iterator[str]:
    """Compare the rows, which end with the input of the last output token."""
    import torch

    tokens = [*result.prompt, *result.token_ids][:-1]
    expected = hidden_states_of(result.model_path, tokens)
    rows = sum(map(bool, result.hidden_states))
    if rows < len(result.hidden_states) or not rows:
        yield f"{result.rid}: hidden states are missing"
        return
    if rows > len(expected):
        yield f"{result.rid}: {rows} hidden states of {len(expected)} tokens"
        return
    off = (torch.tensor(result.hidden_states) - expected[-rows:]).abs().amax(-1)
    wrong = (off > _MOST_HIDDEN * tie_of(result.model_path) / 1e-4).nonzero().flatten().tolist()
    if wrong:
        at = len(expected) - rows + wrong[0]
        yield (
            f"{result.rid}: the hidden state of token {at} of {len(tokens)} is off by "
            f"{float(off[wrong[0]]):.5f}, and {len(wrong)} of {rows} rows are wrong"
        )
