"""torch.distributed stores that listen on loopback only.

A TCPStore that torch opens by itself (`tcp://`, `env://`) binds every interface, and its port is
chosen long before it is bound. Here rank 0 binds a loopback socket first and hands it to a
multi-tenant TCPStore. When torch is asked in the same process for a server at that port, it returns
this one (torch/csrc/distributed/c10d/TCPStore.cpp, `multi_tenant`).

torch expects a new store for each default group: a second `init_process_group` would read what the
first one has written, and connect to addresses where nothing listens any more. So each
`init_process_group` that takes its store from the environment gets a prefix of its own.
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
"""How often the running test has initialised a world of each size; equal on all its ranks."""


def begin_test(serial: int) -> None:
    """Start new prefixes for test `serial`; called on all ranks."""
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
    """Serve a store from rank 0; return its (host, port) on every rank. All ranks must call it."""
    address = listen_on_loopback() if pprank.rank == 0 else None
    host, port = pprank.broadcast(address)
    return host, port


def serve_store_of_role(pprank: Pprank) -> tuple[str, int]:
    """Serve a store from the first rank of each instance of a role; return this one's address.

    All ranks of the group must call it.
    """
    address = listen_on_loopback() if pprank.leads_role else None
    found = pprank.gather(address)[pprank.role_ranks.start]
    assert found is not None  # its first rank has just listened
    return found


def point_environment_at(address: tuple[str, int]) -> None:
    """Make `env://` initialisation use the store at `address`, which rank 0 serves already."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
    # rank 0 must connect to the existing server instead of opening its own
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    _keep_worlds_apart(address)


def _keep_worlds_apart(address: tuple[str, int]) -> None:
    """Give each rendezvous at `address` a prefix of its own in the store."""
    from torch.distributed import PrefixStore

    # torch.distributed.rendezvous is also a function, which `import ... as` would return
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
