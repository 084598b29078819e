"""Accessors for allocators, pools and tree caches."""

from __future__ import annotations

from typing import Any

from pytest_pprank.sglang.compat.seams import need

_TRACKABLE = ("TokenToKVPoolAllocator", "PagedTokenToKVPoolAllocator")


def keeps_single_tokens(allocator: Any) -> bool:
    """Return whether an allocator keeps free tokens one by one in a tensor (page size 1)."""
    plain = type(allocator).__name__ in _TRACKABLE and allocator.page_size == 1
    return plain and free_pages_of(allocator) is not None


def free_pages_of(allocator: Any) -> Any:
    """Return the tensor of an allocator's free pages; None if there is none."""
    return getattr(allocator, "free_pages", None)


def all_free_pages_of(allocator: Any) -> tuple[Any, ...]:
    """Return all free pages as tensors, including those that wait to be merged and sorted."""
    if hasattr(allocator, "get_all_free_pages"):
        return (allocator.get_all_free_pages(),)
    return allocator.free_pages, allocator.release_pages


def collects_what_is_freed(allocator: Any) -> bool:
    """Return whether an allocator currently only collects freed pages, to free them in one call."""
    at_once = getattr(allocator, "is_not_in_free_group", None)  # up to 0.5.18
    if at_once is not None:
        return not at_once
    return getattr(allocator, "free_group", None) is not None


def kv_buffers_of(pool: Any) -> tuple[Any, Any] | None:
    """Return keys and values of a KV pool by layer; None for latent attention."""
    keys = getattr(pool, "k_buffer", None)
    return (keys, pool.v_buffer) if keys else None


def first_layer_of(pool: Any) -> int:
    """Return the number of a KV pool's first layer."""
    return int(getattr(pool, "start_layer", 0))


def node_key(node: Any) -> int:
    """Return a key that identifies a node of the tree cache; some releases pass a number."""
    return node if isinstance(node, int) else id(node)


def request_slots_of(pool: Any) -> int:
    """Return how many request slots exist; decode has extra ones for KV that is arriving."""
    return int(need(pool, "size")) + int(getattr(pool, "pre_alloc_size", 0))


def lists_its_tokens(tree: Any) -> bool:
    """Return whether a tree cache can list its KV tokens."""
    return hasattr(tree, "all_values_flatten")
