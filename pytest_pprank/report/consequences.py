"""Recognises failures that are consequences of another rank's: they are never the first cause."""

from __future__ import annotations

import re

from pytest_pprank.errors import PeerError

_PEER_ERROR = (f"{PeerError.__module__}.{PeerError.__qualname__}", PeerError.__name__)

# Messages of the transports when the other end is gone. gloo: transport/tcp/pair.cc; TCPStore:
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
    """Return whether a failure is our PeerError: the rank's meeting could not take place."""
    return message.startswith(_PEER_ERROR)


def is_lost_peer(message: str) -> bool:
    """Return whether an exception of torch.distributed says that the other end is gone."""
    return bool(_LOST.search(message) and _TRANSPORTS.search(message))
