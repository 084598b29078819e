"""The platform class for device cpu; it imports SGLang, so only SGLang imports this module."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import psutil
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.platform.paging import paged_allocator_class

if TYPE_CHECKING:
    import torch


class PprankCpuPlatform(SRTPlatform):  # type: ignore[misc]
    """Plain CPU with torch's own kernels; pools and allocators are SGLang's defaults."""

    _enum = PlatformEnum.OOT
    device_name = "pprank-cpu"
    device_type = "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_device(self, device_id: int | None = 0) -> str:  # noqa: ARG002
        return "cpu"

    def get_device_total_memory(self, device_id: int = 0) -> int:  # noqa: ARG002
        return int(psutil.virtual_memory().total)

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:  # noqa: ARG002
        memory = psutil.virtual_memory()
        return float(memory.total - memory.available)

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        from torch.profiler import ProfilerActivity

        return ProfilerActivity.CPU

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """Return the KV pool class of a kind; SGLang calls this from 0.5.22 on."""
        known = {"mha": self.get_mha_kv_pool_cls, "mla": self.get_mla_kv_pool_cls}
        return known[kind]() if kind in known else None

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool  # type: ignore[no-any-return]

    def get_mla_kv_pool_cls(self) -> type:
        _absorb_latent_attention()  # SGLang asks for MLA models only, before their first forward
        return _mla_kv_pool_class()

    def get_paged_allocator_cls(self) -> type:
        return paged_allocator_class()


@cache
def _mla_kv_pool_class() -> type:
    """Return SGLang's own pool, accepting the extra argument that a platform's pool is given."""
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    class MLAPool(MLATokenToKVPool):  # type: ignore[misc]
        def __init__(
            self, *args: object, index_head_dim: int | None = None, **kwargs: object
        ) -> None:
            if index_head_dim is not None:
                raise UsageError("device cpu has no KV pool for sparse attention (index_head_dim)")
            super().__init__(*args, **kwargs)

    return MLAPool


def _absorb_latent_attention() -> None:
    """Make MLA models attend to the latents in the KV pool even when nothing is cached yet.

    The "torch_native" attention reads keys and values from the pool only. SGLang's table of
    forward methods has no entry for "torch_native" and falls back to that of "triton", which passes
    a prompt's keys beside the pool.
    """
    module = import_module("sglang.srt.models.deepseek_common.attention_backend_handler")
    way = need(need(module, "AttnForwardMethod"), "MLA")
    need(need(module, "AttentionBackendRegistry"), "register")("torch_native", lambda *_: way)
