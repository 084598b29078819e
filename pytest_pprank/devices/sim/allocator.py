"""The caching allocator: memory in use, the limit, and the reuse of freed memory.

Memory is cached per device, stream and size (rounded up to 512 bytes), as in torch's CUDA
allocator: a freed block goes to the next tensor of that size on the stream where it was allocated,
without regard to other streams, unless ``record_stream`` has named them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_pprank.devices.sim import NAME
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import Stream, device_index

_ROUND = 512
_DEFAULT_TOTAL = 4 << 30
_KEPT_LOTS = 64
FREED = -1
"""`last` of a block whose log is still that of the tensor that had the memory before."""


Log = dict[Any, Any]
"""The accesses to a freed block by streams other than its own; never empty."""


@dataclass
class Stats:
    """Bytes of one device: in use, and in the cache, now and at their peaks."""

    allocated: int = 0
    peak_allocated: int = 0
    cached: int = 0
    peak_reserved: int = 0
    allocations: int = 0
    out_of_memory: int = 0
    lots: dict[tuple[int, int], list[Log | None]] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        return self.allocated + self.cached


_stats: dict[int, Stats] = defaultdict(Stats)


def rounded(nbytes: int) -> int:
    """Return the size of the block for a tensor of `nbytes`."""
    return nbytes + -nbytes % _ROUND


def account(nbytes: int, stream: Stream) -> Log | None:
    """Count a new block; return the log of the freed block whose memory it reuses, if any."""
    size = rounded(nbytes)
    stats = _stats[stream.device_index]
    lots = stats.lots.get((stream.stream_id, size))
    lot = None
    if lots:
        lot = lots.pop()
        stats.cached -= size
    stats.allocations += 1
    stats.allocated = allocated = stats.allocated + size
    if allocated > stats.peak_allocated:
        stats.peak_allocated = allocated
    if allocated + stats.cached > stats.peak_reserved:
        stats.peak_reserved = allocated + stats.cached
    return lot


def freed(nbytes: int, stream: Stream, log: dict[Any, Any], recorded: object) -> None:
    """Count a freed block, and cache it for the next tensor of its size and stream."""
    size = rounded(nbytes)
    stats = _stats[stream.device_index]
    stats.allocated -= size
    if not nbytes or recorded:
        return  # recorded on other streams: reused only after these have finished
    own = stream.stream_id
    others = {key: entry for key, entry in log.items() if entry.stream_id != own}
    lots = stats.lots.setdefault((own, size), [])
    if len(lots) < _KEPT_LOTS:
        lots.append(others or None)
        stats.cached += size


def check_room(nbytes: int, device: int) -> None:
    """Raise torch.OutOfMemoryError if a new tensor would exceed the limit."""
    limit = settings.memory_limit
    if not limit:
        return
    stats = _stats[device]
    wanted = rounded(nbytes)
    if stats.allocated + wanted <= limit:
        if stats.reserved + wanted > limit:
            empty_cache(device)
        return
    stats.out_of_memory += 1
    raise torch.OutOfMemoryError(
        f"{NAME.upper()} out of memory. Tried to allocate {wanted / 2**20:.2f} MiB. Device "
        f"{device} has a total capacity of {limit / 2**20:.2f} MiB "
        f"of which {(limit - stats.allocated) / 2**20:.2f} MiB is free "
        "(PPRANK_SIM_MEMORY_LIMIT)"
    )


def empty_cache(device: int) -> None:
    """Release the cached memory, so that no tensor reuses it."""
    stats = _stats[device]
    stats.lots.clear()
    stats.cached = 0


def stats_of(device: Any = None) -> Stats:
    """Return the counters of a device."""
    return _stats[device_index(device)]


def total_memory() -> int:
    """Return the capacity of a device in bytes."""
    return settings.memory_limit or _DEFAULT_TOTAL


def reset_peaks(device: Any = None) -> None:
    """Reset the peaks to the current values."""
    stats = stats_of(device)
    stats.peak_allocated, stats.peak_reserved = stats.allocated, stats.reserved


def memory_stats(device: Any = None) -> dict[str, int]:
    """Return the counters under the names of torch.cuda.memory_stats."""
    stats = stats_of(device)
    return {
        "allocated_bytes.all.current": stats.allocated,
        "allocated_bytes.all.peak": stats.peak_allocated,
        "reserved_bytes.all.current": stats.reserved,
        "reserved_bytes.all.peak": stats.peak_reserved,
        "allocation.all.allocated": stats.allocations,
        "num_ooms": stats.out_of_memory,
    }
