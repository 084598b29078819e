"""Requests and results, converted to and from SGLang's messages."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.sglang.compat.messages import request_fields, sampling_fields, stamp
from pytest_pprank.sglang.compat.seams import fill, need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message, Options

_SHOWN = 8
"""Tokens in the repr of a Result."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for beside its tokens (see `Engine.submit`)."""

    logprobs: bool = False
    prompt_logprobs: bool = False
    top_logprobs: int = 0
    token_ids_logprobs: tuple[int, ...] = ()
    hidden_states: bool = False
    embedding: bool = False

    @property
    def any_logprobs(self) -> bool:
        """Whether SGLang has to compute any logprob."""
        of_tokens = self.logprobs or self.prompt_logprobs
        return bool(of_tokens or self.top_logprobs or self.token_ids_logprobs)

    def first_logprob(self, length: int) -> int:
        """Return SGLang's ``logprob_start_len`` for a prompt of that length."""
        if self.prompt_logprobs:
            return 0
        return length if self.any_logprobs else -1


@dataclass(repr=False)
class Result:
    """The state of one request; the same on all ranks after each call of the engine.

    `token_ids`: the output tokens so far, without the prompt. `finish_reason`: SGLang's, such as
    ``{"type": "length", "length": 8}``; None until the request is finished. `cached_tokens`: tokens
    of the prompt that were found in the tree cache. `retractions`: how often SGLang took the
    request's KV away for others, and recomputed it. `extends`: for each forward of the prompt on
    the first stage, the range of tokens (half open); more than one means that the prompt was
    chunked. `dp_rank`: the DP rank to which the request was sent.

    `asked`: what the request asks for beside tokens. Only if requested, one entry per output token:
    `logprobs`, that of the token; `top_logprobs`, those of the likeliest tokens, by token;
    `token_ids_logprobs`, those of the tokens asked for, by token. `prompt_logprobs`,
    `prompt_top_logprobs` and `prompt_token_ids_logprobs`: the same for the prompt's tokens, from
    the second on. `hidden_states`: the last layer's output, a list of floats per token: of each
    computed (not cached) token of the prompt, then of each output token but the last.

    `embedding`: of the prompt, a list of floats, with ``is_embedding=True`` (instead of tokens).
    """

    rid: str
    prompt: tuple[int, ...]
    sampling: dict[str, Any]
    model_path: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_top_logprobs: list[dict[int, float]] = field(default_factory=list)
    token_ids_logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_token_ids_logprobs: list[dict[int, float]] = field(default_factory=list)
    hidden_states: list[list[float]] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    finish_reason: dict[str, Any] | None = None
    cached_tokens: int = 0
    retractions: int = 0
    extends: list[tuple[int, int]] = field(default_factory=list)
    asked: Asked = field(default_factory=Asked)
    dp_rank: int = 0

    @property
    def finished(self) -> bool:
        """Whether SGLang has reported this request as finished."""
        return self.finish_reason is not None

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.token_ids[:_SHOWN]))
        more = ", ..." if len(self.token_ids) > _SHOWN else ""
        reason = self.finish_reason.get("type") if self.finish_reason else "not finished"
        return (
            f"<Result {self.rid}: {len(self.prompt)} prompt tokens, {len(self.token_ids)} of "
            f"{self.sampling.get('max_new_tokens')} came [{shown}{more}], {reason}>"
        )


def asked_for(options: Options, vocabulary: int) -> Asked:
    """Return what `options` (arguments of `Engine.submit`) ask for. Raises UsageError."""
    asked = Asked(**{**options, "token_ids_logprobs": tuple(options["token_ids_logprobs"])})
    wrong = [token for token in asked.token_ids_logprobs if token not in range(vocabulary)]
    if wrong:
        raise UsageError(
            f"engine.submit: token_ids_logprobs has {wrong[0]!r}; allowed: token ids from 0 to "
            f"{vocabulary - 1}"
        )
    if asked.top_logprobs not in range(vocabulary + 1):
        raise UsageError(
            f"engine.submit: top_logprobs={asked.top_logprobs!r}; allowed: 0 to {vocabulary}"
        )
    return asked


def sampling_of(max_new_tokens: int, changes: Mapping[str, object]) -> dict[str, object]:
    """Return SGLang's sampling params: greedy defaults, overridden by `changes`.

    The end-of-text token is ignored by default, unless `changes` name tokens to stop at: SGLang
    ignores both or neither. Raises UsageError for a name that SGLang's SamplingParams lacks.
    """
    known = sampling_fields()
    for name in changes:
        if name not in known:
            raise UsageError(
                f"engine: SGLang's SamplingParams has no {name!r}{did_you_mean(name, known)}"
            )
    greedy = {"temperature": 0.0, "ignore_eos": not changes.get("stop_token_ids")}
    return {**greedy, "max_new_tokens": max_new_tokens, **changes}


def generate_request(
    rid: str,
    prompt: Sequence[int],
    sampling: Mapping[str, object],
    *,
    tokenizer: object,
    asked: Asked,
    stream: bool,
    priority: int | None = None,
    role: str = "null",
    **more: object,
) -> Message:
    """Return the message with which SGLang's tokenizer asks its Scheduler for tokens.

    If `asked` is for the embedding of the prompt, the message asks for that.

    `tokenizer`: the Scheduler's, if it has one; SGLang checks the sampling params with it. `role`:
    of the Scheduler, if it is one of prefill or decode. `more`: fields of the message that
    override those derived from the other arguments.
    """
    io_struct = import_module("sglang.srt.managers.io_struct")
    if asked.embedding:
        sampling = {"max_new_tokens": 0}
    params = import_module("sglang.srt.sampling.sampling_params").SamplingParams(**sampling)
    params.normalize(tokenizer)
    known = {
        "rid": rid,
        "input_text": "",
        "input_ids": array("q", prompt),
        "input_embeds": None,
        "token_type_ids": None,
        "mm_inputs": None,
        "image_inputs": None,
        "sampling_params": params,
        "return_logprob": asked.any_logprobs,
        "logprob_start_len": asked.first_logprob(len(prompt)),
        "top_logprobs_num": asked.top_logprobs,
        "token_ids_logprob": list(asked.token_ids_logprobs) or None,
        "return_hidden_states": asked.hidden_states,
        "stream": stream,
        "priority": priority,
    }
    kind = "TokenizedEmbeddingReqInput" if asked.embedding else "TokenizedGenerateReqInput"
    request = need(io_struct, kind)
    made: Message = stamp(request(**fill(request, {**known, **more})), role)
    return made


def check_fields(fields: Mapping[str, object]) -> Mapping[str, object]:
    """Return `fields`; raises UsageError for one that SGLang's request message does not have."""
    known = request_fields()
    for name in fields:
        if name not in known:
            raise UsageError(
                f"engine.submit: SGLang's TokenizedGenerateReqInput has no field {name!r}"
                f"{did_you_mean(name, known)}"
            )
    return fields


def abort_request(rid: str | None) -> Message:
    """Return the message that aborts one request, or all of them."""
    abort = need(import_module("sglang.srt.managers.io_struct"), "AbortReq")
    made: Message = abort(abort_all=True) if rid is None else abort(rid=rid)
    return made
