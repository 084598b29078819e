"""Typed, frozen events: what SGLang has done, or is about to do, on this rank.

They are decoded once from SGLang's calls (see `hooks`), and hold plain values. They contain values
of tensors only if reading these needs no device copy (`devices.host_reads`). Fields of type
``Look`` are functions that inspect SGLang's objects. Call them only inside the listener: SGLang
changes the objects right afterwards.
"""

from __future__ import annotations

from pytest_pprank.sglang.events.types.agreement import (
    ConsensusApplied,
    ConsensusBrought,
    ConsensusLocal,
    HandshakesDone,
    RoomTold,
)
from pytest_pprank.sglang.events.types.base import Event, Layer, Look, Stack
from pytest_pprank.sglang.events.types.batches import (
    BatchPrepared,
    BatchResult,
    BatchScheduled,
    Forward,
    ForwardContents,
    ForwardEntry,
    ForwardMade,
    HostTensor,
    LastToken,
    Origin,
    Pending,
)
from pytest_pprank.sglang.events.types.memory import (
    KvAllocated,
    KvCleared,
    KvFreed,
    KvReader,
    MetadataAllocated,
    MetadataFreed,
    PrefixLocked,
    PrefixUnlocked,
    SlotAllocated,
    SlotFreed,
    TokenPool,
)
from pytest_pprank.sglang.events.types.messages import (
    KvQueued,
    KvRead,
    KvSent,
    KvTarget,
    Message,
    MessageReceived,
    MessageSent,
    TransferPolled,
)
from pytest_pprank.sglang.events.types.others import (
    ExpertsRan,
    LogRecord,
    Quiescent,
    SentPrompt,
    WrongRow,
)

__all__ = [
    "BatchPrepared",
    "BatchResult",
    "BatchScheduled",
    "ConsensusApplied",
    "ConsensusBrought",
    "ConsensusLocal",
    "Event",
    "ExpertsRan",
    "Forward",
    "ForwardContents",
    "ForwardEntry",
    "ForwardMade",
    "HandshakesDone",
    "HostTensor",
    "KvAllocated",
    "KvCleared",
    "KvFreed",
    "KvQueued",
    "KvRead",
    "KvReader",
    "KvSent",
    "KvTarget",
    "LastToken",
    "Layer",
    "LogRecord",
    "Look",
    "Message",
    "MessageReceived",
    "MessageSent",
    "MetadataAllocated",
    "MetadataFreed",
    "Origin",
    "Pending",
    "PrefixLocked",
    "PrefixUnlocked",
    "Quiescent",
    "RoomTold",
    "SentPrompt",
    "SlotAllocated",
    "SlotFreed",
    "Stack",
    "TokenPool",
    "TransferPolled",
    "WrongRow",
]
