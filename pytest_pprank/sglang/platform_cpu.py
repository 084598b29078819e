"""The platform class itself; imports SGLang, so only SGLang imports this module."""

from __future__ import annotations

from typing import Any

import psutil
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform


class PprankCpuPlatform(SRTPlatform):  # type: ignore[misc]
    """Plain CPU with torch's own kernels: pools and allocators are SGLang's defaults."""

    _enum = PlatformEnum.OOT
    device_name = "pprank-cpu"
    device_type = "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_device_total_memory(self, device_id: int = 0) -> int:  # noqa: ARG002
        return int(psutil.virtual_memory().total)

    def get_current_memory_usage(self, device: Any = None) -> float:  # noqa: ARG002
        memory = psutil.virtual_memory()
        return float(memory.total - memory.available)

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool  # type: ignore[no-any-return]

    def get_mla_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

        return MLATokenToKVPool  # type: ignore[no-any-return]

    def get_paged_allocator_cls(self) -> type:
        from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator

        return PagedTokenToKVPoolAllocator  # type: ignore[no-any-return]
