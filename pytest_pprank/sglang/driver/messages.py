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
    from pytest_pprank.sglang.compat.objects import Message

_SHOWN = 8
"""Tokens in the repr of a Result."""


@dataclass(repr=False)
class Result:
    """The state of one request; the same on all ranks after each call of the engine.

    `token_ids`: the output tokens so far, without the prompt. `logprobs`: those of these tokens;
    `prompt_logprobs`: those of the prompt's tokens from the second on; both only if requested.
    `finish_reason`: SGLang's, such as ``{"type": "length", "length": 8}``; None until the request
    is finished. `cached_tokens`: tokens of the prompt that were found in the tree cache.
    `retractions`: how often SGLang took the request's KV away for others, and recomputed it.
    `extends`: for each forward of the prompt on the first stage, the range of tokens (half open);
    more than one means that the prompt was chunked.
    """

    rid: str
    prompt: tuple[int, ...]
    sampling: dict[str, Any]
    model_path: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    finish_reason: dict[str, Any] | None = None
    cached_tokens: int = 0
    retractions: int = 0
    extends: list[tuple[int, int]] = field(default_factory=list)

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


@dataclass(frozen=True)
class Output:
    """One request's part of an output message."""

    rid: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    finish_reason: dict[str, Any] | None = None
    cached_tokens: int = 0
    retractions: int = 0


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
    logprobs: bool,
    stream: bool,
    prompt_logprobs: bool = False,
    priority: int | None = None,
    role: str = "null",
    **more: object,
) -> Message:
    """Return the message with which SGLang's tokenizer requests tokens from its Scheduler.

    `role`: of the Scheduler, if it is one of prefill or decode. `more`: fields of the message that
    override those derived from the other arguments.
    """
    io_struct = import_module("sglang.srt.managers.io_struct")
    params = import_module("sglang.srt.sampling.sampling_params").SamplingParams(**sampling)
    params.normalize(None)
    known = {
        "rid": rid,
        "input_text": "",
        "input_ids": array("q", prompt),
        "input_embeds": None,
        "token_type_ids": None,
        "mm_inputs": None,
        "sampling_params": params,
        "return_logprob": logprobs or prompt_logprobs,
        "logprob_start_len": 0 if prompt_logprobs else len(prompt) if logprobs else -1,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "stream": stream,
        "priority": priority,
    }
    request = need(io_struct, "TokenizedGenerateReqInput")
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


def outputs_of(message: Message) -> list[Output]:
    """Return the outputs in a message of the Scheduler; empty for any other kind of message."""
    io_struct = import_module("sglang.srt.managers.io_struct")
    if isinstance(message, need(io_struct, "AbortReq")):
        # a request that had not begun: the Scheduler returns the abort itself
        reason = message.finished_reason or {"type": "abort"}
        return [Output(str(message.rid), finish_reason=dict(reason))]
    if isinstance(message, need(io_struct, "BatchTokenIDOutput")):
        return [_output(message, index) for index in range(len(message.rids))]
    return []


def _output(message: Message, index: int) -> Output:
    reason = message.finished_reasons[index]
    logprobs = message.output_token_logprobs_val
    values = logprobs[index] if logprobs else None
    of_prompt = message.input_token_logprobs_val
    # the first token of a prompt has no logprob
    prompt_values = (
        [value for value in of_prompt[index] or () if value is not None] if of_prompt else ()
    )
    return Output(
        rid=message.rids[index],
        token_ids=tuple(message.output_ids[index]),
        logprobs=tuple(values or ()),
        prompt_logprobs=tuple(prompt_values),
        finish_reason=None if reason is None else dict(reason),
        cached_tokens=int(message.cached_tokens[index]),
        retractions=int(message.retraction_counts[index]) if message.retraction_counts else 0,
    )
