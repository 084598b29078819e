"""Paged KV allocation without Triton: the two kernels of SGLang's paged allocator, in torch.

The allocator itself stays SGLang's own. Only the kernels that it launches are replaced, because
Triton has no driver for a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from pytest_pprank.sglang.compat.seams import need


def paged_allocator_class() -> type:
    """Replace the kernels of SGLang's paged allocator in this process; return the allocator."""
    from sglang.srt.mem_cache import allocator

    allocator_class = need(allocator, "PagedTokenToKVPoolAllocator")
    home = sys.modules[allocator_class.__module__]
    fill_pages = need(allocator, "alloc_extend_naive")
    for name in ("alloc_extend_kernel", "alloc_decode_kernel"):
        need(home, name)
    home.alloc_extend_kernel = _Kernel(  # type: ignore[attr-defined]
        lambda *args: _extend(fill_pages, *args)
    )
    home.alloc_decode_kernel = _Kernel(_decode)  # type: ignore[attr-defined]
    return allocator_class  # type: ignore[no-any-return]


class _Kernel:
    """Can be launched as Triton's kernels are: ``kernel[grid](*args)``."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._function


def _extend(
    fill_pages: Callable[..., None],
    prefix_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out: torch.Tensor,
    _: int,
    page_size: int,
) -> None:
    """Fill `out` with the KV indices of all new tokens, by SGLang's own torch implementation."""
    pages = (seq_lens + page_size - 1) // page_size - (prefix_lens + page_size - 1) // page_size
    if int(pages.sum()) <= len(free_pages):  # else the allocator reports that memory is out
        fill_pages(prefix_lens, seq_lens, last_loc, free_pages, out, page_size, out.device)


def _decode(
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out: torch.Tensor,
    _: int,
    page_size: int,
) -> None:
    """Fill `out` with one new KV index per request: after its last token, or on a new page."""
    begins = seq_lens % page_size == 1
    if int(begins.sum()) > len(free_pages):
        return  # the allocator reports that memory is out
    out.copy_(last_loc + 1)
    out[begins] = free_pages[: int(begins.sum())] * page_size
