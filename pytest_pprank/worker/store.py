"""torch.distributed stores that listen on loopback only.

A TCPStore that torch opens for itself (`tcp://`, `env://`) binds every interface, and its port
is chosen long before it is bound. Here rank 0 binds a loopback socket first and hands it to a
multi-tenant TCPStore; whoever asks torch for a server at that port in the same process is given
this one (torch/csrc/distributed/c10d/TCPStore.cpp, `multi_tenant`).
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from pytest_pprank.worker.handle import Pprank

LOOPBACK = "127.0.0.1"
_servers: list[TCPStore] = []  # a store stops serving when it is collected


def listen_on_loopback() -> tuple[str, int]:
    """Serve a store from this process on a free loopback port; returns (host, port)."""
    from torch.distributed import TCPStore

    listener = socket.create_server((LOOPBACK, 0), backlog=1024)
    port: int = listener.getsockname()[1]
    _servers.append(
        TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            multi_tenant=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listener.detach(),
        )
    )
    return LOOPBACK, port


def serve_store(pprank: Pprank) -> tuple[str, int]:
    """Serve a store from rank 0; returns its (host, port) on every rank. A meeting of all ranks."""
    address = listen_on_loopback() if pprank.rank == 0 else None
    host, port = pprank.broadcast(address)
    return host, port


def serve_store_of_role(pprank: Pprank) -> tuple[str, int]:
    """Serve a store from the first stage of each role; returns that of this rank's role.

    A meeting of all ranks of the group.
    """
    address = listen_on_loopback() if pprank.is_first_stage else None
    told = pprank.gather((pprank.role, address))
    host, port = next(address for role, address in told if role == pprank.role and address)
    return host, port


def point_environment_at(address: tuple[str, int]) -> None:
    """Make `env://` initialisation use the store at `address`, which rank 0 already serves."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
    # rank 0 would otherwise open a server of its own: it must join the one that is there
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
