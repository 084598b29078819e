"""Restricts ports that a library opens on all interfaces to this host.

Mooncake's transfer engine binds its handshake port and its data port to 0.0.0.0 and ::, and has no
option to change that (MC_TCP_BIND_ADDRESS is only what it *tells* its peers). Linux lets a process
bind a socket that already listens to one device (SO_BINDTODEVICE; unprivileged since 5.7).
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TABLES = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}
_LISTEN = "0A"


@contextmanager
def listeners_on_loopback() -> Iterator[None]:
    """Bind the TCP sockets that begin to listen on every interface in this block to ``lo``.

    Warns if a socket cannot be bound.
    """
    before = set(_listening_inodes())
    yield
    for fd, family in _open_listeners(set(_listening_inodes()) - before):
        with socket.socket(family, socket.SOCK_STREAM, fileno=os.dup(fd)) as listener:
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            except OSError as error:
                port = listener.getsockname()[1]
                what = f"port {port} of the KV transfer engine is open to other hosts: {error}"
                warnings.warn(what, stacklevel=2)


def _open_listeners(
    inodes: set[tuple[str, socket.AddressFamily]],
) -> Iterator[tuple[int, socket.AddressFamily]]:
    """Yield descriptor and address family of those of these sockets that this process owns."""
    families = dict(inodes)
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of the folder being listed is closed by now
            name = os.readlink(entry)
            inode = name.removeprefix("socket:[").removesuffix("]")
            if name.startswith("socket:[") and inode in families:
                yield int(entry.name), families[inode]


def _listening_inodes() -> Iterator[tuple[str, socket.AddressFamily]]:
    """Yield inode and family of each socket, of any process, that listens on all interfaces."""
    for table, family in _TABLES.items():
        file = Path(f"/proc/self/net/{table}")
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            _, local, _, state, *_ = fields = line.split()
            if state == _LISTEN and not int(local.partition(":")[0], 16):
                yield fields[9], family
