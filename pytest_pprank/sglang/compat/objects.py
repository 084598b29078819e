"""SGLang's objects by name, for annotations: whose the attributes are that a function reads.

The package is checked without SGLang, and its objects differ from release to release: so each class
here has any attribute, and says which one of SGLang's it stands for. None is ever made: what is
annotated is SGLang's own object. Neither torch nor SGLang is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class SglangObject:
    """An object whose attributes are SGLang's."""

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
    """What goes through the sockets: the classes in srt/managers/io_struct.py."""


class Req(SglangObject):
    """``Req`` in srt/managers/schedule_batch.py."""


class Batch(SglangObject):
    """A ScheduleBatch or a ForwardBatch."""


class ScheduleBatch(Batch):
    """``ScheduleBatch`` in srt/managers/schedule_batch.py."""


class ForwardBatch(Batch):
    """``ForwardBatch`` in srt/model_executor/forward_batch_info.py."""


class PPProxyTensors(SglangObject):
    """``PPProxyTensors`` in srt/model_executor/forward_batch_info.py: from stage to stage."""


class ModelRunner(SglangObject):
    """``ModelRunner`` in srt/model_executor/model_runner.py."""


class TokenAllocator(SglangObject):
    """``BaseTokenToKVPoolAllocator`` in srt/mem_cache/allocator: what KV tokens are taken from."""


class ReqToTokenPool(SglangObject):
    """``ReqToTokenPool`` in srt/mem_cache/memory_pool.py: the request slots."""


class KVCache(SglangObject):
    """``KVCache`` in srt/mem_cache/memory_pool.py: keys and values by layer."""


class Socket(SglangObject):
    """A socket of zmq's, or one of ours in its place, as SGLang uses it."""


if TYPE_CHECKING:
    Prompt = int | Sequence[int]
    """What a test may give for a prompt: a length, or token ids."""
