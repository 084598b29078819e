"""Attention to a paged KV cache as one kernel of the simulated device.

On a GPU a decode forward is by default a CUDA graph. Before its replay, what the Scheduler shares
with it (``req_to_token`` first of all) is copied into buffers of the graph, and an event is
recorded; the overlap schedule waits for that event only before it writes again. This backend does
the same while the schedule overlaps: it copies the rows when the forward begins. Otherwise the
Scheduler would wait for whole forwards, and such a wait would hide other ordering bugs: tensors of
a batch that are freed, rows and KV that are given to other requests. A prompt forward has no such
event; the Scheduler waits for all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from pytest_pprank.devices.sim import NAME
from pytest_pprank.devices.sim.accesses import rows_of
from pytest_pprank.devices.sim.fused import Launch
from pytest_pprank.sglang.compat.kernels import overlaps, publish_reads_done

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ForwardBatch, ModelRunner


def attention_class() -> Any:
    """Return SGLang's "torch_native" backend with kernels of the simulated device."""
    native = import_module("sglang.srt.layers.attention.torch_native_backend")

    class SimAttention(native.TorchNativeAttnBackend):  # type: ignore[misc,name-defined]
        """Attention to a paged KV cache in one kernel."""

        def __init__(self, model_runner: ModelRunner) -> None:
            super().__init__(model_runner)
            self._runner = model_runner if overlaps(model_runner) else None
            self._copied: tuple[torch.Tensor, torch.Tensor] | None = None

        def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
            super().init_forward_metadata(forward_batch)
            self._copied = None
            if self._runner is not None and forward_batch.forward_mode.is_decode():
                table = self._runner.req_to_token_pool.req_to_token
                slots, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
                copied = _copy_rows(table, slots, lengths)
                event = torch.get_device_module(NAME).Event()
                event.record()
                if publish_reads_done(self._runner, event):
                    self._copied = copied

        def _run_sdpa_forward_extend(self, *args: object, **options: object) -> torch.Tensor:
            return _attend(super()._run_sdpa_forward_extend, "extend attention", args, options)

        def _run_sdpa_forward_decode(self, *args: object, **options: object) -> torch.Tensor:
            if self._copied is not None:
                args = (*args[:4], *self._copied, *args[6:])
            return _attend(super()._run_sdpa_forward_decode, "decode attention", args, options)

    return SimAttention


def _copy_rows(
    table: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return copies of the rows `slots` of ``req_to_token``, up to `lengths`, and row numbers."""
    launch = Launch("copy of req_to_token")
    slots, lengths = launch.reads(slots, "req_pool_indices"), launch.reads(lengths, "seq_lens")
    read = list(zip(slots.tolist(), lengths.tolist(), strict=True))
    table = launch.reads_bytes(table, "req_to_token", [_part(table, *one) for one in read])
    launch.check()
    rows = table.new_zeros(len(read), max((length for _, length in read), default=0))
    for row, (slot, length) in zip(rows, read, strict=True):
        row[:length] = table[slot, :length]
    copied: tuple[torch.Tensor, torch.Tensor] = launch.results(
        (rows, torch.arange(len(read), dtype=slots.dtype))
    )
    return copied


def _attend(
    native: Callable[..., torch.Tensor], name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> torch.Tensor:
    """Run one attention as one kernel.

    The native implementation makes the host wait for the lengths. No GPU kernel does so, and a
    wait by the host would hide ordering bugs, so here the host does not wait.
    """
    query, output, keys, values, table, slots, lengths, *others = args
    if not others or others[-1] is not None or options.get("is_cross_attn"):
        return native(*args, **options)  # cross attention of an encoder
    launch = Launch(name)
    slots, lengths = launch.reads(slots, "req_pool_indices"), launch.reads(lengths, "seq_lens")
    others = [launch.reads(value, "extend_lens") for value in others]
    read = list(zip(slots.tolist(), lengths.tolist(), strict=True))
    table = launch.reads_bytes(table, "req_to_token", [_part(table, *one) for one in read])
    tokens = torch.cat([table[slot, :length] for slot, length in read])
    launch.check()
    native(
        launch.reads(query, "query"),
        launch.writes(output),
        launch.reads(keys, "k_cache", rows_of(keys, tokens)),
        launch.reads(values, "v_cache", rows_of(values, tokens)),
        table, slots, lengths, *others, **options,
    )  # fmt: skip
    return output


def _part(table: torch.Tensor, row: int, length: int) -> tuple[int, int]:
    """Return the byte range, in the table's storage, of the first `length` entries of a row."""
    start = table.storage_offset() + row * table.stride(0)
    return start * table.element_size(), (start + length) * table.element_size()
