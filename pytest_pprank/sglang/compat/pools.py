"""Allocators, pools and tree caches: what is free, what is held."""

from __future__ import annotations

from typing import Any

from pytest_pprank.sglang.compat.seams import need

_FOLLOWED = ("TokenToKVPoolAllocator", "PagedTokenToKVPoolAllocator")


def keeps_single_tokens(allocator: Any) -> bool:
    """Whether an allocator keeps its free tokens one by one, in a tensor: pages of one token."""
    plain = type(allocator).__name__ in _FOLLOWED and allocator.page_size == 1
    return plain and free_pages_of(allocator) is not None


def free_pages_of(allocator: Any) -> Any:
    """Return the tensor of an allocator's free pages, None where there is none."""
    return getattr(allocator, "free_pages", None)


def all_free_pages_of(allocator: Any) -> tuple[Any, ...]:
    """Return, as tensors, all pages that are free, also those that wait to be merged and sorted."""
    if hasattr(allocator, "get_all_free_pages"):
        return (allocator.get_all_free_pages(),)
    return allocator.free_pages, allocator.release_pages


def collects_what_is_freed(allocator: Any) -> bool:
    """Whether an allocator only collects what it is given back, to free it in one call."""
    at_once = getattr(allocator, "is_not_in_free_group", None)  # up to 0.5.18
    if at_once is not None:
        return not at_once
    return getattr(allocator, "free_group", None) is not None


def kv_buffers_of(pool: Any) -> tuple[Any, Any] | None:
    """Return keys and values of a KV pool by layer; None for another form (latent attention)."""
    keys = getattr(pool, "k_buffer", None)
    return (keys, pool.v_buffer) if keys else None


def first_layer_of(pool: Any) -> int:
    """Return the first layer that a KV pool is for."""
    return int(getattr(pool, "start_layer", 0))


def node_key(node: Any) -> int:
    """Return what tells a node of the tree cache from others; some releases pass a number."""
    return node if isinstance(node, int) else id(node)


def request_slots_of(pool: Any) -> int:
    """Return how many request slots there are: decode has some for KV that is on its way."""
    return int(need(pool, "size")) + int(getattr(pool, "pre_alloc_size", 0))


def lists_its_tokens(tree: Any) -> bool:
    """Whether a tree cache can tell which KV tokens it has."""
    return hasattr(tree, "all_values_flatten")
