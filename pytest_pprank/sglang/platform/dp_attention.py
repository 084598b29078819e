"""DP attention without a GPU: what SGLang runs as kernels of CUDA, or by NCCL, as torch operators.

Before each forward the ranks of a stage pad their batches to common sizes, and before and after
each MLP they gather and share out the rows of all DP ranks. A DP rank without requests takes part
with a batch of no rows.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.compat.start import name_of_row_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_pprank.sglang.compat.objects import SglangObject


def run_without_gpu(device: str) -> None:
    """Replace what needs a GPU, in this process; on device cuda, do nothing."""
    if device.startswith("cuda"):
        return
    gathered = import_module("sglang.srt.layers.dp_attention")
    name = name_of_row_copy(gathered)
    need(gathered, name)
    setattr(gathered, name, copy_rows if device == "cpu" else _kernel(copy_rows))
    _pad_lengths()
    _share_unequal_rows()
    if device == "cpu":
        _have_no_pinned_memory("sglang.srt.model_executor.forward_batch_info")


def copy_rows(
    target: torch.Tensor,
    source: torch.Tensor,
    dim: int,
    offset: torch.Tensor,
    size: torch.Tensor,
    offset_src: bool,
) -> None:
    """Copy `size` rows from the start of `source` to `offset` of `target`, or the other way."""
    assert dim == 0
    rows = slice(int(offset), int(offset) + int(size))
    if offset_src:
        part = source[rows][: len(target)]
        target[: len(part)] = part
    else:
        target[rows] = source[: len(target[rows])]


def _kernel(copy: Callable[..., None]) -> Callable[..., None]:
    """Turn the copy of rows into one kernel of the simulated device: the host reads no number."""
    from pytest_pprank.devices.sim.fused import Launch

    def memcpy(target: torch.Tensor, source: torch.Tensor, *where: object) -> None:
        launch = Launch("memcpy of rows")
        given = launch.writes(target, "dst"), launch.reads(source, "src")
        numbers = [launch.reads(each, "offset or size") for each in where]
        launch.check()
        copy(*given, *numbers)

    return memcpy


def _pad_lengths() -> None:
    """Give SGLang the length of a request that only fills a batch, as its Triton backend does."""
    module = import_module("sglang.srt.layers.attention.torch_native_backend")
    backend = need(module, "TorchNativeAttnBackend")
    need(backend, "get_cuda_graph_seq_len_fill_value")
    backend.get_cuda_graph_seq_len_fill_value = lambda self: 1  # noqa: ARG005


def _share_unequal_rows() -> None:
    """Let process groups share out and gather numbers of rows that differ: they ask NCCL itself."""
    group = need(import_module("sglang.srt.distributed.parallel_state"), "GroupCoordinator")
    for method in (reduce_scatterv, all_gatherv):
        need(group, method.__name__)
        setattr(group, method.__name__, method)


def reduce_scatterv(
    self: SglangObject,
    input_: torch.Tensor,
    output: torch.Tensor | None = None,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return this rank's rows of the sum over a group; `sizes`: rows of each rank."""
    counts = _counts(self, sizes, len(input_) // int(self.world_size))
    total = input_.clone()
    dist.all_reduce(total, group=self.device_group)
    start = sum(counts[: self.rank_in_group])
    rows = total[start : start + counts[self.rank_in_group]]
    return rows.clone() if output is None else output.copy_(rows)


def all_gatherv(
    self: SglangObject,
    input_: torch.Tensor | Sequence[torch.Tensor],
    sizes: Sequence[int] | None = None,
    output: torch.Tensor | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """Return the rows of all ranks of a group; `sizes`: rows of each rank."""
    if not isinstance(input_, torch.Tensor):
        return [_gathered(self, each, sizes) for each in input_]
    rows = _gathered(self, input_, sizes)
    return rows if output is None else output.copy_(rows)


def _gathered(
    group: SglangObject, input_: torch.Tensor, sizes: Sequence[int] | None
) -> torch.Tensor:
    counts = _counts(group, sizes, len(input_))
    rows = input_.new_zeros((sum(counts), *input_.shape[1:]))
    start = sum(counts[: group.rank_in_group])
    rows[start : start + len(input_)] = input_
    dist.all_reduce(rows, group=group.device_group)
    return rows


def _counts(group: SglangObject, sizes: Sequence[int] | None, each: int) -> list[int]:
    return [each] * int(group.world_size) if sizes is None else list(sizes)


class _TorchWithoutPins(ModuleType):
    """The module torch, with a ``torch.tensor`` for machines that have no pinned memory."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.tensor = _without_pins(torch.tensor)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _without_pins(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(function)
    def tensor(*args: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        del pin_memory
        return function(*args, **options)

    return tensor


def _have_no_pinned_memory(name: str) -> None:
    """Give a module of SGLang, which pins without asking, a torch that does not."""
    module: Any = import_module(name)
    module.torch = _TorchWithoutPins()
