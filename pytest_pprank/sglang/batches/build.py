"""Builds real Req, ScheduleBatch and ForwardBatch objects on one stage, as SGLang does.

A request goes through the scheduler's own steps: match its prefix in the tree cache, lock the
prefix, allocate. `release` frees everything again. Each stage builds the same batch from the same
prompts, as the stages of a pipeline do.
"""

from __future__ import annotations

import itertools
import operator
from array import array
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.sglang.batches.fields import SCHEDULE_BATCH
from pytest_pprank.sglang.batches.materialize import note_origin, note_staging, table_of
from pytest_pprank.sglang.compat.batches import meet_dp_ranks, relay_payload
from pytest_pprank.sglang.compat.model import logits_of
from pytest_pprank.sglang.compat.requests import (
    cache_keeper,
    committed_tokens_of,
    holds_kv,
    is_request,
    lock_prefix,
    set_extend,
)
from pytest_pprank.sglang.compat.seams import fill, need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import (
        ForwardBatch,
        PPProxyTensors,
        Prompt,
        Req,
        ScheduleBatch,
        Scheduler,
    )

_serial = itertools.count()
_MODES = ("extend", "decode")


def restart_serial() -> None:
    """Number requests from zero again, so that a test's prompts do not depend on earlier tests."""
    global _serial
    _serial = itertools.count()


def make_req(
    scheduler: Scheduler,
    *,
    input_ids: Sequence[int] | None = None,
    prompt_len: int | None = None,
    max_new_tokens: int = 8,
    rid: str | None = None,
    top_logprobs: int | None = None,
    **sampling: Any,
) -> Req:
    """Return a real Req that is in no queue yet; it is greedy unless `sampling` says otherwise.

    Give `input_ids`, or `prompt_len` for that many made-up ids, which differ between requests and
    are the same on all ranks and in all runs. `top_logprobs`: return logprobs, and those of that
    many of the likeliest tokens. `sampling`: fields of SGLang's SamplingParams. Raises UsageError
    for any other prompt.
    """
    __tracebackhide__ = True
    serial = next(_serial)
    vocabulary = int(need(scheduler, "model_config").vocab_size)
    ids = _prompt(input_ids, prompt_len, serial, vocabulary)
    sampling_module = import_module("sglang.srt.sampling.sampling_params")
    params = need(sampling_module, "SamplingParams")(
        **{"temperature": 0, "ignore_eos": True, **sampling}, max_new_tokens=max_new_tokens
    )
    params.normalize(None)
    req_class = need(import_module("sglang.srt.managers.schedule_batch"), "Req")
    known = {
        "rid": rid if rid is not None else f"req-{serial}",
        "origin_input_text": "",
        "origin_input_ids": array("q", ids),
        "sampling_params": params,
        "return_logprob": top_logprobs is not None,
        "top_logprobs_num": top_logprobs or 0,
        "vocab_size": vocabulary,
    }
    req: Req = req_class(**fill(req_class.__init__, known))
    req.logprob_start_len = -1
    return req


def make_schedule_batch(
    scheduler: Scheduler,
    prompts: Sequence[Prompt | Req],
    *,
    mode: str = "extend",
    chunk: int | None = None,
    max_new_tokens: int = 8,
) -> ScheduleBatch:
    """Return a real ScheduleBatch, prepared for its forward, its token ids still staged.

    `prompts`: per request a Req, a sequence of token ids, or a length. `chunk`: the last request
    is cut to its first `chunk` tokens and is the batch's chunked_req (see `make_next_chunk`).
    ``mode="decode"``: the prompts have already run through this stage, and each request has one
    output token. That token is fixed, different for each request: only the last stage samples, and
    the input of a lone stage is made up anyway. Raises UsageError for wrong arguments.
    """
    __tracebackhide__ = True
    _check_batch_arguments(prompts, mode, chunk)
    # No comprehension: before Python 3.12 its frame would show in the error for a wrong prompt.
    reqs = list(map(partial(_as_req, scheduler, max_new_tokens), prompts))
    for req in reqs:
        req.init_next_round_input(scheduler.tree_cache)
        lock_prefix(scheduler.tree_cache, req)
    batch = _extend(scheduler, reqs, chunk)
    if mode == "decode":
        run_forward(scheduler, make_forward_batch(scheduler, batch))
        append_tokens(scheduler, batch)
        batch.prepare_for_decode()
    return batch


def make_next_chunk(
    scheduler: Scheduler, batch: ScheduleBatch, *, chunk: int | None = None
) -> ScheduleBatch:
    """Return the batch with the next `chunk` tokens (default: the rest) of a chunked_req.

    The forward of `batch` must have run; `batch` must not be used or released any more.
    """
    __tracebackhide__ = True
    req = batch.chunked_req
    if req is None:
        raise UsageError("make_next_chunk: the batch has no chunked_req; make it with chunk=N")
    need(scheduler, "stash_chunked_request")(req)
    req.init_next_round_input()
    return _extend(scheduler, [req], chunk)


def make_forward_batch(scheduler: Scheduler, batch: ScheduleBatch) -> ForwardBatch:
    """Return the real ForwardBatch of a ScheduleBatch, made as the scheduler's run_batch does.

    First SGLang's own resolve_forward_inputs copies the staged token ids to the device. With DP
    attention all ranks of a stage must make one: they tell each other how many tokens it has.
    Raises UsageError for anything but a ScheduleBatch.
    """
    __tracebackhide__ = True
    if table_of(batch) is not SCHEDULE_BATCH:
        raise UsageError(
            f"make_forward_batch: takes SGLang's ScheduleBatch, as make_schedule_batch gives it, "
            f"not {_shown(batch)}"
        )
    batch = meet_dp_ranks(scheduler, batch)
    overlap = import_module("sglang.srt.managers.overlap_utils")
    need(overlap, "resolve_forward_inputs")(batch, need(scheduler, "future_map"))
    forward_batch_class = need(
        import_module("sglang.srt.model_executor.forward_batch_info"), "ForwardBatch"
    )
    known = {
        "batch": batch,
        "model_runner": need(need(scheduler, "tp_worker"), "model_runner"),
        "return_hidden_states_before_norm": False,
    }
    made: ForwardBatch = forward_batch_class.init_new(**fill(forward_batch_class.init_new, known))
    note_origin(made, batch)
    return made


def run_forward(
    scheduler: Scheduler, forward_batch: ForwardBatch, *, proxy: PPProxyTensors | None = None
) -> Any:
    """Run this stage's layers on `forward_batch` and return what the model runner returns.

    `proxy`: the PPProxyTensors of the previous stage; by default zeros of the real shape
    ``[tokens, hidden]``, on every stage but the first.
    """
    model_runner = scheduler.tp_worker.model_runner
    if proxy is None and not scheduler.pp_group.is_first_rank:
        proxy = zero_proxy(scheduler, int(forward_batch.input_ids.shape[0]))
    with torch.no_grad():
        output = model_runner.forward(forward_batch=forward_batch, pp_proxy_tensors=proxy)
    return logits_of(output)


def zero_proxy(scheduler: Scheduler, tokens: int) -> PPProxyTensors:
    """Return PPProxyTensors of zeros, of the shape that a previous stage sends for `tokens`."""
    info = import_module("sglang.srt.model_executor.forward_batch_info")
    runner = scheduler.tp_worker.model_runner
    config = runner.model_config
    proxy: PPProxyTensors = need(info, "PPProxyTensors")(
        {
            name: torch.zeros(
                (tokens, config.hidden_size), dtype=config.dtype, device=scheduler.device
            )
            for name in ("hidden_states", "residual")
        }
    )
    return proxy


def release(scheduler: Scheduler, batch: ScheduleBatch) -> None:
    """Free all that the batch's requests own; does nothing for those that own nothing."""
    release_reqs(scheduler, batch.reqs)


def release_reqs(scheduler: Scheduler, reqs: Sequence[Req]) -> None:
    """Free the KV, slots and locks of requests, whatever batch they were in."""
    give_back = need(import_module("sglang.srt.mem_cache.common"), "release_kv_cache")
    known = {"is_insert": False, "checkpoint": False}  # is_insert up to 0.5.21
    for req in reqs:
        if holds_kv(req):
            _name_tokens(req)
            give_back(**fill(give_back, {"req": req, "tree_cache": scheduler.tree_cache, **known}))


def _name_tokens(req: Req) -> None:
    """Give a token id to each KV token: SGLang frees what it has ids for.

    A test may prepare a decode step without the token that it follows.
    """
    missing = committed_tokens_of(req) - len(req.origin_input_ids) - len(req.output_ids)
    req.output_ids.extend([0] * max(0, missing))


def _extend(scheduler: Scheduler, reqs: list[Req], chunk: int | None) -> ScheduleBatch:
    for req in reqs:
        set_extend(req, None)
    chunked = reqs[-1] if chunk is not None and set_extend(reqs[-1], chunk) else None
    batch_class = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    batch: ScheduleBatch = batch_class.init_new(
        reqs,
        scheduler.req_to_token_pool,
        scheduler.token_to_kv_pool_allocator,
        scheduler.tree_cache,
        scheduler.model_config,
        scheduler.enable_overlap,
        scheduler.spec_algorithm,
        chunked_req=chunked,
    )
    batch.prepare_for_extend()
    note_staging(batch)
    return batch


def append_tokens(scheduler: Scheduler, batch: ScheduleBatch) -> None:
    """Do what SGLang does with a forward's result: append one token per request, and relay it.

    The tokens are made up, and different for each request of the batch.
    """
    keep = cache_keeper()
    tokens = [100 + index for index in range(len(batch.reqs))]
    for req, token in zip(batch.reqs, tokens, strict=True):
        req.output_ids.append(token)
        keep(req, scheduler.tree_cache)
    payload = relay_payload(torch.tensor(tokens, dtype=torch.int64, device=scheduler.device))
    need(scheduler.future_map, "stash")(batch.req_pool_indices, payload)
    batch.input_ids = None


def _check_batch_arguments(prompts: object, mode: str, chunk: int | None) -> None:
    __tracebackhide__ = True
    if mode not in _MODES:
        raise UsageError(
            f"make_schedule_batch: mode={mode!r}{did_you_mean(str(mode), _MODES)}; "
            "allowed: 'extend', 'decode'"
        )
    if chunk is not None and mode == "decode":
        raise UsageError(
            f"make_schedule_batch: chunk={chunk!r} goes with mode='extend' only: a decode batch "
            "computes one token per request, so there is nothing to cut"
        )
    if chunk is not None and chunk < 1:
        raise UsageError(f"make_schedule_batch: chunk={chunk!r}; a chunk has at least 1 token")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UsageError(
            "make_schedule_batch: prompts must be a list, per request a Req, a list of token ids "
            f"or a length, not {_shown(prompts)}"
        )
    if not prompts:
        raise UsageError("make_schedule_batch: prompts is empty; give at least one prompt")


def _shown(value: object) -> str:
    """Describe the wrong value that was given, in short."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if plain else f"a {type(value).__name__}"


def _as_req(scheduler: Scheduler, max_new_tokens: int, prompt: Prompt | Req) -> Req:
    __tracebackhide__ = True
    if isinstance(prompt, int):
        return make_req(scheduler, prompt_len=prompt, max_new_tokens=max_new_tokens)
    if is_request(prompt):
        return prompt
    return make_req(scheduler, input_ids=token_ids(prompt), max_new_tokens=max_new_tokens)


def _prompt(
    input_ids: Sequence[int] | None, prompt_len: int | None, serial: int, vocabulary: int
) -> list[int]:
    __tracebackhide__ = True
    if (input_ids is None) == (prompt_len is None):
        raise UsageError("make_req: give either input_ids=[...] or prompt_len=N")
    if input_ids is None:
        length = int(prompt_len or 0)
        ids = made_up_prompt(length, serial, vocabulary)
    else:
        ids = token_ids(input_ids)
    if not ids:
        raise UsageError("make_req: a prompt needs at least one token id")
    if not all(0 <= token < vocabulary for token in ids):
        raise UsageError(f"make_req: token ids must lie in 0 to {vocabulary - 1}")
    return ids


def made_up_prompt(length: int, serial: int, vocabulary: int) -> list[int]:
    """Return `length` token ids that depend only on `serial`, `length` and `vocabulary`."""
    return [3 + (serial * 7919 + position * 31) % (vocabulary - 3) for position in range(length)]


def prompt_ids(prompt: Prompt, serial: int, vocabulary: int, call: str) -> list[int]:
    """Return the token ids of a prompt, which may be a length for made-up ones.

    Raises UsageError, which names `call`, unless there is one at least, all from the vocabulary.
    """
    if isinstance(prompt, int) and not isinstance(prompt, bool):
        ids = made_up_prompt(prompt, serial, vocabulary)
    else:
        ids = token_ids(prompt, call)
    if not ids or not all(0 <= token < vocabulary for token in ids):
        raise UsageError(
            f"{call}: a prompt needs at least one token id, each from 0 to {vocabulary - 1}"
        )
    return ids


def token_ids(given: Any, call: str = "make_req") -> list[int]:
    """Return a prompt's token ids as a list.

    Raises UsageError, whose message begins with `call`, for anything else.
    """
    __tracebackhide__ = True
    try:
        return [operator.index(token) for token in given]
    except TypeError:
        raise UsageError(
            f"{call}: a prompt is a list of token ids or a length, not {_shown(given)}"
        ) from None
