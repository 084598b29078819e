"""Accessors for ScheduleBatch, ForwardBatch and the model's other inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.seams import need


def rids_of(forward_batch: Any) -> tuple[str, ...]:
    """Return the ids of a ForwardBatch's requests, in its order; empty if it has none."""
    return tuple(getattr(forward_batch, "rids", None) or ())


def device_of(batch: Any) -> Any:
    """Return the ``device`` attribute of a batch or tensor; "cpu" if it has none."""
    return getattr(batch, "device", None) or "cpu"


def tensor_field(batch: Any, name: str) -> Any:
    """Return a field of a batch if it is a tensor, else None."""
    value = getattr(batch, name, None)
    return value if hasattr(value, "dtype") else None


def extends_of(forward_batch: Any) -> Iterator[tuple[int, int]]:
    """Yield the range of tokens (half open) of each request of a forward of prompts."""
    prefixes = getattr(forward_batch, "extend_prefix_lens_cpu", None)
    lengths = getattr(forward_batch, "extend_seq_lens_cpu", None)
    for start, length in zip(_numbers(prefixes), _numbers(lengths), strict=True):
        yield start, start + length


def is_plain_extend(mode: Any) -> bool:
    """Return whether a ForwardMode is for prompts and does not verify drafts."""
    return bool(mode.is_extend() and not mode.is_target_verify())


def mode_of(batch: Any) -> Any:
    """Return the ForwardMode of a batch; None if it has none."""
    return getattr(batch, "forward_mode", None)


def tensors_of_proxy(proxy: Any) -> Mapping[str, Any]:
    """Return the tensors sent by the previous stage (PPProxyTensors); empty on the first stage."""
    return getattr(proxy, "tensors", None) or {}


def relay_payload(tokens: Any) -> Any:
    """Wrap sampled tokens in the type that SGLang's future_map expects."""
    overlap = import_module("sglang.srt.managers.overlap_utils")
    relay = getattr(overlap, "RelayPayload", None)
    return tokens if relay is None else relay(bonus_tokens=tokens)


def _numbers(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def meet_dp_ranks(scheduler: Any, batch: Any) -> Any:
    """Let DP ranks tell each other how many tokens each of them runs; return the batch to run.

    A meeting of the ranks of a stage, as in each iteration of an event loop; without DP attention
    nothing happens.
    """
    return need(need(scheduler, "dp_attn_adapter"), "maybe_prepare_mlp_sync_batch")(batch)
