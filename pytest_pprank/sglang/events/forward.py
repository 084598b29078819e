"""Decodes events of batches on their way into the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_pprank.devices.host_reads import host_values, is_host_readable
from pytest_pprank.sglang.batches.fields import FORWARD_BATCH
from pytest_pprank.sglang.batches.materialize import (
    check_batch,
    describe,
    host_tensors,
    note_origin,
    note_staging,
    origin_of,
)
from pytest_pprank.sglang.compat import batches, model, requests
from pytest_pprank.sglang.compat import scheduler as compat_scheduler
from pytest_pprank.sglang.events.forwards import forward_of
from pytest_pprank.sglang.events.memory import kv_reader, numbers, token_pool
from pytest_pprank.sglang.events.types import (
    BatchPrepared,
    BatchResult,
    BatchScheduled,
    ForwardContents,
    ForwardEntry,
    ForwardMade,
    HostTensor,
    LastToken,
    Origin,
    Pending,
)
from pytest_pprank.sglang.stage.event_loop import iteration_of_this_thread

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ModelRunner, ScheduleBatch
    from pytest_pprank.sglang.events.hook_points import HookCall

_PER_TOKEN = ("input_ids", "positions", "out_cache_loc")
_PER_REQUEST = ("seq_lens", "req_pool_indices")
_CHEAP = ("input_ids", "positions", "seq_lens", "out_cache_loc")
"""The only fields that are checked if reading a tensor needs a device copy."""


def extend_prepared(call: HookCall) -> BatchPrepared:
    """Decode a prepared batch of prompts; record its staging, to compare the forward with."""
    batch = call.args[0]
    if is_host_readable(batch.device):
        note_staging(batch)
    return _prepared(batch, tuple(int(length) for length in batch.extend_lens))


def decode_prepared(call: HookCall) -> BatchPrepared:
    """Decode a prepared batch of one token per request."""
    batch = call.args[0]
    return _prepared(batch, (1,) * len(batch.reqs))


def _prepared(batch: ScheduleBatch, lengths: tuple[int, ...]) -> BatchPrepared:
    rids, tokens = tuple(req.rid for req in batch.reqs), batch.out_cache_loc
    pool = None if tokens is None else token_pool(batch.token_to_kv_pool_allocator)
    if pool is None:
        return BatchPrepared(rids)
    return BatchPrepared(rids, pool, lengths, numbers(tokens))


def forward_made(call: HookCall) -> ForwardMade:
    """Decode a ForwardBatch that was made; record its ScheduleBatch for the forward's entry."""
    batch = call.argument(1, "batch")
    note_origin(call.result, batch)
    return ForwardMade(forward_of(batch, 0), iteration_of_this_thread())


def forward_entry(call: HookCall) -> ForwardEntry:
    """Decode the ForwardBatch that enters the model."""
    runner, batch = call.args[0], call.argument(1, "forward_batch")
    mode, device = batch.forward_mode, torch.device(runner.device)
    extend, free = batches.is_plain_extend(mode), is_host_readable(device)
    return ForwardEntry(
        mode=mode.name.lower(),
        extend=extend,
        rids=batches.rids_of(batch),
        problems=_problems(batch, device, free) if extend or mode.is_decode() else (),
        sizes=_sizes(batch),
        origin=_origin(origin_of(batch), batch),
        contents=_contents(runner, batch) if free and not mode.is_idle() else None,
        on_host=_on_host(batch, call, device),
        pool=token_pool(runner.token_to_kv_pool_allocator),
        kv=kv_reader(runner.req_to_token_pool, model.kv_pool_of(runner)),
        iteration=iteration_of_this_thread(),
    )


def _problems(batch: ScheduleBatch, device: torch.device, free: bool) -> tuple[str, ...]:
    fields = None if free else _CHEAP
    return tuple(str(finding) for finding in check_batch(batch, FORWARD_BATCH, device, fields))


def _sizes(batch: ScheduleBatch) -> dict[str, int]:
    """Return the number of entries of each tensor (the last dimension counts tokens)."""
    tensors = {name: batches.tensor_field(batch, name) for name in (*_PER_TOKEN, *_PER_REQUEST)}
    return {
        name: int(tensor.shape[-1 if name in _PER_TOKEN else 0])
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _origin(origin: ScheduleBatch, forward_batch: object) -> Origin | None:
    if origin is forward_batch:
        return None
    mode, reqs = origin.forward_mode, origin.reqs
    decode, overlap = mode.is_decode(), bool(origin.enable_overlap)
    lengths = [1] * len(reqs) if decode else [int(n) for n in origin.extend_lens or ()]
    last = [LastToken(requests.tokens_of(req), requests.last_token_of(req)) for req in reqs]
    return Origin(
        rids=tuple(req.rid for req in reqs),
        lengths=tuple(lengths),
        mode=mode.name.lower(),
        overlap=overlap,
        last=tuple(last) if decode and not overlap else (),
    )


def _contents(runner: ModelRunner, batch: ScheduleBatch) -> ForwardContents | None:
    fields = ("input_ids", "positions", *_PER_REQUEST, "out_cache_loc")
    ids, positions, seq_lens, slots, taken = (batches.tensor_field(batch, f) for f in fields)
    if seq_lens is None or slots is None or taken is None:
        return None
    table, lengths = host_values(runner.req_to_token_pool.req_to_token), numbers(seq_lens)
    rows = zip(numbers(slots), lengths, strict=False)
    flat = positions is not None and positions.dim() == 1
    return ForwardContents(
        input_ids=None if ids is None else numbers(ids),
        positions=numbers(positions) if flat else None,
        seq_lens=lengths,
        written=numbers(taken),
        rows=tuple(table[slot, :length].tolist() for slot, length in rows),
    )


def _on_host(batch: ScheduleBatch, call: HookCall, device: torch.device) -> tuple[HostTensor, ...]:
    if device.type == "cpu":
        return ()
    found = host_tensors(batch, call.argument(3, "pp_proxy_tensors"))
    return tuple(HostTensor(name, describe(tensor)) for name, tensor in found)


def batch_result(call: HookCall) -> BatchResult:
    """Decode the batch whose result is about to be processed."""
    batch = call.argument(1, "batch")
    return BatchResult(tuple(req.rid for req in batch.reqs), batch.forward_mode.name.lower())


def batch_scheduled(call: HookCall) -> BatchScheduled:
    """Decode the state of a Scheduler that has chosen what to run next."""
    scheduler = call.args[0]
    pool = scheduler.token_to_kv_pool_allocator
    pending = compat_scheduler.pending_requests(scheduler)
    return BatchScheduled(
        pending=tuple(Pending(req.rid, requests.most_tokens_of(req)) for req in pending),
        slots=len(compat_scheduler.microbatches_of(scheduler)) or 1,
        free_tokens=int(pool.available_size()),
        total_tokens=int(pool.size),
        free_request_slots=int(scheduler.req_to_token_pool.available_size()),
    )
