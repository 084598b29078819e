"""torch.distributed stores that listen on loopback only.

A TCPStore that torch opens for itself (`tcp://`, `env://`) binds every interface, and its port
is chosen long before it is bound. Here rank 0 binds a loopback socket first and hands it to a
multi-tenant TCPStore; whoever asks torch for a server at that port in the same process is given
this one (torch/csrc/distributed/c10d/TCPStore.cpp, `multi_tenant`).

torch takes a store for that of one life of its default group: a second `init_process_group` would
read what the first one has left there, and connect to addresses where nobody listens any more. So
each one that takes its store from the environment gets names of its own in it.
"""

from __future__ import annotations

import functools
import os
import socket
from collections import Counter
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

    from pytest_pprank.rank.handle import Pprank

LOOPBACK = "127.0.0.1"
_servers: list[TCPStore] = []  # a store stops serving when it is collected
_serial = 0
_turns: Counter[int] = Counter()
"""How often the running test has begun a world of each size here: as often on the other ranks."""


def begin_test(serial: int) -> None:
    """Test `serial` begins, on all ranks."""
    global _serial
    _serial = serial
    _turns.clear()


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
    addresses = pprank.gather((pprank.role, address))
    host, port = next(address for role, address in addresses if role == pprank.role and address)
    return host, port


def point_environment_at(address: tuple[str, int]) -> None:
    """Make `env://` initialisation use the store at `address`, which rank 0 already serves."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
    # rank 0 would otherwise open a server of its own: it must join the one that is there
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    _keep_worlds_apart(address)


def _keep_worlds_apart(address: tuple[str, int]) -> None:
    """Give each rendezvous at `address` names of its own in the store there."""
    from torch.distributed import PrefixStore

    # by its full name: the package has a function of that name, too
    rendezvous: Any = import_module("torch.distributed.rendezvous")
    original = rendezvous._create_c10d_store

    @functools.wraps(original)
    def create(hostname: str, port: int, rank: int, world_size: int, *rest: object) -> Store:
        store = original(hostname, port, rank, world_size, *rest)
        if (hostname, port) != address:
            return store
        _turns[world_size] += 1
        return PrefixStore(f"pprank/{_serial}/{world_size}/{_turns[world_size]}", store)

    rendezvous._create_c10d_store = create
