"""Consequences of another rank's end are distinguished from a first cause."""

from __future__ import annotations

import pytest

from pytest_pprank.errors import PeerError
from pytest_pprank.report.consequences import is_lost_peer, is_released

LOST = [
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by "
    "peer [127.0.0.1]:10077. This may indicate a remote worker crashed.",
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection reset by peer",
    "RuntimeError: Application timeout caused pair closure (gloo)",
    "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely "
    "closed. Did the remote server shutdown or crash?",
    "torch.distributed.DistBackendError: NCCL communicator was aborted on rank 0.",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3, remote process "
    "exited or there was a network error",
]
OWN = [
    "ValueError: the first cause",
    "AssertionError: assert 'Connection closed by peer' in text",
    "RuntimeError: [gloo/transport/tcp/pair.cc:1] op.preamble.length <= op.nbytes. 8 vs 4",
    "ConnectionRefusedError: [Errno 111] Connection refused",
]


@pytest.mark.parametrize("message", LOST)
def test_a_lost_peer(message: str) -> None:
    assert is_lost_peer(message)


@pytest.mark.parametrize("message", OWN)
def test_a_failure_of_its_own(message: str) -> None:
    assert not is_lost_peer(message)
    assert not is_released(message)


def test_a_released_rank() -> None:
    name = f"{PeerError.__module__}.{PeerError.__qualname__}"
    assert is_released(f"{name}: rank 0 waits in barrier() at test_x.py:3 in vain")
