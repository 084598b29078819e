"""Reference tokens of a test's model: decoding by transformers on the CPU, without SGLang.

One forward over prompt and output scores every output token, given the tokens before it. In
float32 each must be the reference's best. In float16 and bfloat16 two logits can be nearer than
rounding, and another kernel may choose the other token: each must then be within a margin of the
best, and the tokens after it are scored given the token that was chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.messages import Result
from pytest_pprank.sglang.events.types import Layer
from pytest_pprank.sglang.model.chooser import Chooser, chooser_of, unpredictable
from pytest_pprank.sglang.model.kv_values import first_differences
from pytest_pprank.sglang.model.loaded import TIE, loaded, logits_of, tie_of
from pytest_pprank.sglang.model.scores import embedding_findings, score_findings
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pytest_pprank.rank.handle import Pprank

_EXPLAINED = 2
"""Number of requests whose KV a failure explains: further ones would repeat the same finding."""
GREEDY = Chooser()
_MARGIN = {"torch.float16": 1e-1, "torch.bfloat16": 5e-1}
"""How far below the best logit a token may be, by the model's dtype; float32: not at all.

Measured on H200s (SGLang 0.5.17, 256 tokens of each family): at most 0.016 in float16 and 0.34 in
bfloat16. Where one token of the prompt was another one, the worst of a request's 32 tokens was
0.22 below the best or more, half of them 2.5 or more.
"""


@dataclass(frozen=True)
class Expected:
    """The reference at one position: its token, the logit of that token, and the second best."""

    token: int
    logit: float
    second: float


@dataclass(frozen=True)
class Judged:
    """The comparison of one output with the reference.

    `expected`: the reference per position. `logprobs`: the reference's logprob of each output
    token. `differs_at`: index of the first output token that differs, None if none does.
    `logit_of_found`: the reference's logit of that token. `tie`: the difference up to which logits
    and logprobs count as equal.
    """

    expected: tuple[Expected, ...]
    logprobs: tuple[float, ...]
    differs_at: int | None
    logit_of_found: float
    tie: float

    @property
    def undecided(self) -> bool:
        """Whether the first difference is a tie: the two logits differ by less than `tie`."""
        if self.differs_at is None:
            return False
        return abs(self.expected[self.differs_at].logit - self.logit_of_found) < self.tie


@functools.lru_cache(maxsize=1024)
def judge(
    model_path: str,
    prompt: tuple[int, ...],
    tokens: tuple[int, ...],
    chooser: Chooser = GREEDY,
) -> Judged:
    """Compare output `tokens` of `prompt` with the reference; cached by its arguments."""
    import torch

    dtype = loaded(model_path)[1]
    logits = logits_of(model_path, [*prompt, *tokens][:-1], len(tokens))
    logits = chooser.logits(logits, tokens)
    chosen = chooser.choose(logits, len(prompt)).tolist()
    second = logits.topk(2, dim=-1).values[:, 1].tolist()
    expected = tuple(
        Expected(token, float(logits[i, token]), second[i]) for i, token in enumerate(chosen)
    )
    scores = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    margin = _MARGIN.get(dtype, 0.0)
    differs = [
        i
        for i, token in enumerate(tokens)
        if token != expected[i].token
        and (chooser.seed is not None or not expected[i].logit - scores[i] <= margin)
    ]
    at = differs[0] if differs else None
    found = float("nan") if at is None else scores[at]
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return Judged(expected, tuple(logprobs.tolist()), at, found, TIE.get(dtype, 1e-4))


def judge_result(result: Result) -> Judged:
    """Compare the tokens of a Result, which has some, with the reference."""
    return judge(result.model_path, result.prompt, tuple(result.token_ids), _chooser(result))


def _chooser(result: Result) -> Chooser:
    ends = loaded(result.model_path)[0].config.eos_token_id
    return chooser_of(result.sampling, ends if isinstance(ends, list) else [ends])


def kv_of(model_path: str, tokens: Sequence[int]) -> tuple[list[Layer], str]:
    """Return keys and values of all layers for a sequence of tokens, and the dtype's name.

    The list of layers is empty for a model whose cache is not keys and values.
    """
    import torch

    model, dtype = loaded(model_path)
    with torch.inference_mode():
        cache = model(input_ids=torch.tensor([[*tokens]]), use_cache=True).past_key_values
    layers = getattr(cache, "layers", ())
    if not all(hasattr(layer, "keys") for layer in layers):
        return [], dtype
    return [(_by_token(layer.keys), _by_token(layer.values)) for layer in layers], dtype


def _by_token(tensor: torch.Tensor) -> np.ndarray:
    """Turn [1, heads, tokens, size] into a numpy array [tokens, heads, size]."""
    values: np.ndarray = tensor[0].transpose(0, 1).float().numpy()
    return values


def differing(results: Sequence[Result]) -> list[Result]:
    """Return the results whose tokens differ from the reference's."""
    with_output = [result for result in results if result.token_ids]
    return [result for result in with_output if judge_result(result).differs_at is not None]


@functools.lru_cache(maxsize=256)
def logprobs_of(model_path: str, prompt: tuple[int, ...]) -> tuple[tuple[float, ...], float]:
    """Return the logprobs of a prompt's tokens from the second on, and their tolerance."""
    import torch

    logprobs = logits_of(model_path, prompt[:-1]).log_softmax(-1)
    values = logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    return tuple(values.tolist()), tie_of(model_path)


def check_predictable(results: Sequence[Result]) -> None:
    """Raise UsageError for a result whose tokens were drawn at random."""
    for result in results:
        if drawn := unpredictable(result.sampling):
            raise UsageError(
                f"assert_tokens_equal_reference: {result.rid} was sampled with {drawn}; the "
                "reference is greedy, or samples by temperature and sampling_seed alone"
            )


def all_findings(results: Sequence[Result], rank: Pprank) -> list[str]:
    """Return `findings`, and for wrong tokens where the KV begins to differ, by rank.

    A meeting of all ranks; only the first of those that are alive computes the reference.
    """
    source = rank.alive[0]
    first = rank.rank == source
    found = list(findings(results, rank.num_stages)) if first else []
    wrong = differing(results)[:_EXPLAINED] if first and found else []
    lines, rids = rank.broadcast((found, [result.rid for result in wrong]), source)
    if not rids:
        return list(lines)
    values = this_stage().values
    gathered = rank.gather((rank.bracketed, values.of(rids) if values is not None else {}))
    for result in wrong:
        tokens = [*result.prompt, *result.token_ids][:-1]
        kept = {place: kv[result.rid] for place, kv in gathered if result.rid in kv}
        lines += first_differences(result.rid, kept, *kv_of(result.model_path, tokens))
    return list(rank.broadcast(lines, source))


def findings(results: Sequence[Result], stages: int) -> Iterator[str]:
    """Yield a description of each result that differs from the reference."""
    for result in results:
        wanted = int(result.sampling["max_new_tokens"])
        reason = (result.finish_reason or {}).get("type")
        if (result.finish_reason or {}).get("err_type"):
            # the output of a refused request does not depend on the prompt
            yield f"{result.rid}: SGLang refused the request: {result.finish_reason}"
            continue
        if result.asked.embedding:
            yield from embedding_findings(result)
            continue
        if reason == "length" and len(result.token_ids) != wanted:
            yield f"{result.rid}: {len(result.token_ids)} tokens came out, {wanted} were asked for"
        elif not result.token_ids and reason != "abort" and wanted:
            yield f"{result.rid}: no token came out (finish reason: {result.finish_reason})"
        if result.token_ids:
            judged = judge_result(result)
            if judged.differs_at is not None:
                yield _difference(result, judged, judged.differs_at, stages)
            elif result.asked.any_logprobs:
                what = "output token"
                yield from _logprobs(result, what, 0, result.logprobs, judged.logprobs, judged.tie)
            if judged.differs_at is None:
                yield from score_findings(result, _chooser(result))
        if result.prompt_logprobs or (result.asked.prompt_logprobs and result.token_ids):
            expected, tie = logprobs_of(result.model_path, result.prompt)
            found = result.prompt_logprobs
            yield from _logprobs(result, "prompt token", 1, found, expected, tie)


def _difference(result: Result, judged: Judged, at: int, stages: int) -> str:
    expected, found = judged.expected[at], result.token_ids[at]
    lines = [
        f"{result.rid}: output token {at} of {len(result.token_ids)} (position "
        f"{len(result.prompt) + at}) is {found}, the reference has {expected.token}",
        f"logits of the reference: {expected.logit:.5f} for {expected.token}, "
        f"{judged.logit_of_found:.5f} for {found}; its second best has {expected.second:.5f}",
        f"before it: {result.token_ids[max(0, at - 4) : at] or 'nothing, it is the first token'}",
        f"{stages} stages, {_how(result)}",
    ]
    if judged.undecided:
        lines.append(
            "this is a tie: the two logits are nearer than rounding; choose another prompt"
        )
    return "\n  ".join(lines)


def _logprobs(
    result: Result,
    what: str,
    first: int,
    found: Sequence[float],
    expected: Sequence[float],
    tie: float,
) -> Iterator[str]:
    """Compare the logprobs of tokens called `what` in messages, numbered from `first`."""
    if len(found) != len(expected):
        yield f"{result.rid}: {len(found)} logprobs of {len(expected)} {what}s"
        return
    tokens = (result.prompt if what == "prompt token" else result.token_ids)[first:]
    for index, values in enumerate(zip(found, expected, strict=True)):
        if not abs(values[0] - values[1]) <= 10 * tie:
            yield (
                f"{result.rid}: the logprob of {what} {first + index} ({tokens[index]}) is "
                f"{values[0]:.5f}, the reference has {values[1]:.5f}; {_how(result)}"
            )
            return


def _how(result: Result) -> str:
    return (
        f"a prompt of {len(result.prompt)} tokens of which {result.cached_tokens} were cached, run "
        f"as {_ranges(result.extends)}"
    )


def _ranges(extends: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{start}-{end}" for start, end in extends) or "(not seen)"
