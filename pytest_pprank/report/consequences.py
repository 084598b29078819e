"""Failures that follow from what befell another rank: they never tell the first cause."""

from __future__ import annotations

import re

from pytest_pprank.errors import PeerError

_PEER_ERROR = (f"{PeerError.__module__}.{PeerError.__qualname__}", PeerError.__name__)

# What the transports say when the other end is gone. gloo: transport/tcp/pair.cc; TCPStore:
# c10d/TCPStoreBackend.cpp and socket.cpp; NCCL: its ncclRemoteError, and ProcessGroupNCCL.cpp.
_LOST = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused)( by peer)?"
    r"|broken pipe"
    r"|application timeout caused pair closure"
    r"|remote process exited or there was a network error"
    r"|nccl communicator was aborted"
    r"|ncclRemoteError"
    r"|peer (closed|gone)"
    r"|failed to recv, got 0 bytes",
    re.IGNORECASE,
)
_TRANSPORTS = re.compile(
    r"gloo|nccl|TCPStore|c10d|socket|DistNetworkError|DistBackendError|pair\.cc"
)


def is_released(message: str) -> bool:
    """Whether a failure is ours: the rank was released from a meeting nobody could come to."""
    return message.startswith(_PEER_ERROR)


def is_lost_peer(message: str) -> bool:
    """Whether an exception of torch.distributed says that the other end is gone."""
    return bool(_LOST.search(message) and _TRANSPORTS.search(message))
