"""Names of SGLang's classes for annotations: they say whose attributes a function reads.

The package is type-checked without SGLang, and SGLang's objects differ between releases. So each
class here accepts any attribute, and documents which class of SGLang it stands for. They are never
instantiated: the annotated objects are SGLang's own. Imports neither torch nor SGLang.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Options = Mapping[str, Any]
    """Arguments of a request, or fields of SGLang's SamplingParams, by name."""


class SglangObject:
    """An object of SGLang with unchecked attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


class Scheduler(SglangObject):
    """``Scheduler`` in srt/managers/scheduler.py, with its mixins."""


class ServerArgs(SglangObject):
    """``ServerArgs`` in srt/server_args.py."""


class PortArgs(SglangObject):
    """``PortArgs`` in srt/server_args.py, a dataclass: the names of the sockets."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]


class Message(SglangObject):
    """A message sent through a socket: a class in srt/managers/io_struct.py."""


class Req(SglangObject):
    """``Req`` in srt/managers/schedule_batch.py."""


class Batch(SglangObject):
    """A ScheduleBatch or a ForwardBatch."""


class ScheduleBatch(Batch):
    """``ScheduleBatch`` in srt/managers/schedule_batch.py."""


class ForwardBatch(Batch):
    """``ForwardBatch`` in srt/model_executor/forward_batch_info.py."""


class PPProxyTensors(SglangObject):
    """``PPProxyTensors`` in srt/model_executor/forward_batch_info.py: sent to the next stage."""


class ModelRunner(SglangObject):
    """``ModelRunner`` in srt/model_executor/model_runner.py."""


class TokenAllocator(SglangObject):
    """``BaseTokenToKVPoolAllocator`` in srt/mem_cache/allocator: allocates KV tokens."""


class ReqToTokenPool(SglangObject):
    """``ReqToTokenPool`` in srt/mem_cache/memory_pool.py: the request slots."""


class KVCache(SglangObject):
    """``KVCache`` in srt/mem_cache/memory_pool.py: keys and values by layer."""


class MoeLayer(SglangObject):
    """``FusedMoE`` in srt/layers/moe/fused_moe_triton/layer.py."""


class TopK(SglangObject):
    """``StandardTopKOutput`` in srt/layers/moe/topk.py: the experts of each token."""


class Socket(SglangObject):
    """A zmq socket, or a replacement of ours with the methods that SGLang uses."""


if TYPE_CHECKING:
    Prompt = int | Sequence[int]
    """A prompt as tests give it: a length, or token ids."""
