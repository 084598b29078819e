"""Decodes events of KV tokens, slots and locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank.devices.host_reads import host_values, is_host_readable
from pytest_pprank.devices.sim.untracked import untracked
from pytest_pprank.sglang.compat import pools, requests
from pytest_pprank.sglang.events.sites import call_sites, current_request_id
from pytest_pprank.sglang.events.types import (
    KvAllocated,
    KvCleared,
    KvFreed,
    Layer,
    MetadataAllocated,
    MetadataFreed,
    PrefixLocked,
    PrefixUnlocked,
    SlotAllocated,
    SlotFreed,
    TokenPool,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pytest_pprank.sglang.compat.objects import KVCache, ReqToTokenPool, TokenAllocator
    from pytest_pprank.sglang.events.hook_points import HookCall


def token_pool(allocator: TokenAllocator) -> TokenPool | None:
    """Return the token pool of an allocator; None if single tokens cannot be tracked."""
    if not pools.keeps_single_tokens(allocator):
        return None
    if not is_host_readable(pools.free_pages_of(allocator).device):
        return None
    return TokenPool(id(allocator), int(allocator.size), lambda: _free_tokens(allocator))


def numbers(tensor: torch.Tensor) -> list[int]:
    """Return the numbers in a tensor that can be read without a device copy."""
    found: list[int] = host_values(tensor).tolist()
    return found


def kv_allocated(call: HookCall) -> KvAllocated:
    """Decode an allocation of KV tokens."""
    pool = None if call.result is None else token_pool(call.args[0])
    if pool is None:
        return KvAllocated(None)
    stack = call_sites()
    # a prepared batch names its requests itself; other callers allocate for one request at a time
    in_batch = any(site.function.startswith("prepare_for") for site in stack)
    rid = "" if in_batch else current_request_id()
    return KvAllocated(pool, numbers(call.result), rid, stack)


def kv_freed(call: HookCall) -> KvFreed:
    """Decode a release of KV tokens."""
    allocator = call.args[0]
    pool = None if pools.collects_what_is_freed(allocator) else token_pool(allocator)
    if pool is None:
        return KvFreed(None)
    tokens = [token for tensor in call.arguments for token in numbers(tensor)]
    return KvFreed(pool, tokens, call_sites())


def kv_cleared(call: HookCall) -> KvCleared:
    """Decode the clearing of an allocator."""
    return KvCleared(id(call.args[0]))


def slot_allocated(call: HookCall) -> SlotAllocated:
    """Decode an allocation of request slots."""
    reqs = call.argument(1, "reqs") or () if call.result is not None else ()
    return SlotAllocated(tuple(req.rid for req in reqs), call_sites())


def slot_freed(call: HookCall) -> SlotFreed:
    """Decode the release of a request slot."""
    req = call.argument(1, "req")
    return SlotFreed(req.rid, requests.slot_of(req), requests.committed_tokens_of(req))


def metadata_allocated(call: HookCall) -> MetadataAllocated:
    """Decode an allocation of a metadata slot."""
    if call.result is None:
        return MetadataAllocated(None)
    return MetadataAllocated(int(call.result), current_request_id(), call_sites())


def metadata_freed(call: HookCall) -> MetadataFreed:
    """Decode the release of a metadata slot."""
    return MetadataFreed(int(call.argument(1, "free_index")), call_sites())


def prefix_locked(call: HookCall) -> PrefixLocked:
    """Decode the locking of a node of the tree cache."""
    node = pools.node_key(call.argument(1, "node"))
    return PrefixLocked(node, current_request_id(), call_sites())


def prefix_unlocked(call: HookCall) -> PrefixUnlocked:
    """Decode the unlocking of a node of the tree cache."""
    return PrefixUnlocked(pools.node_key(call.argument(1, "node")), current_request_id())


class PoolReader:
    """Reads this stage's KV pool; implements `events.types.KvReader`."""

    def __init__(self, slots: ReqToTokenPool, pool: KVCache) -> None:
        self._slots, self._pool = slots, pool
        buffers = pools.kv_buffers_of(pool)
        assert buffers is not None
        self._keys, self._values = buffers

    @property
    def first_layer(self) -> int:
        """See KvReader."""
        return pools.first_layer_of(self._pool)

    @property
    def bytes_per_token(self) -> int:
        """See KvReader."""
        return int(self._keys[0][0].nbytes) * 2 * len(self._keys)

    def read(self, slot: int, tokens: int) -> tuple[Layer, ...]:
        """See KvReader."""
        where = host_values(self._slots.req_to_token)[slot, :tokens].long()
        layers = zip(self._keys, self._values, strict=True)
        return tuple((_taken(keys, where), _taken(values, where)) for keys, values in layers)


def kv_reader(slots: ReqToTokenPool, pool: KVCache) -> PoolReader | None:
    """Return a reader of a KV pool; None if it has no keys and values, or needs device copies."""
    buffers = pools.kv_buffers_of(pool)
    if buffers is None or not is_host_readable(buffers[0][0].device):
        return None
    return PoolReader(slots, pool)


def _taken(buffer: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    values: np.ndarray = host_values(buffer)[tokens].float().numpy()
    return values


def _free_tokens(allocator: TokenAllocator) -> list[int]:
    with untracked():
        return [token for pages in pools.all_free_pages_of(allocator) for token in numbers(pages)]
