"""Authenticated message channels over loopback TCP.

The stream, the framing and the HMAC challenge are those of `multiprocessing.connection`; this
module adds what its `Listener` lacks: a peer that connects and stays silent delays nobody, and
nothing is unpickled before both sides have proved that they know the key.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from queue import Empty, SimpleQueue

from pytest_pprank.wire.messages import PROTOCOL, Hello, Message, as_message

LOOPBACK = "127.0.0.1"
_HANDSHAKE_SECONDS = 10
_ACCEPT_AGAIN_SECONDS = 0.2
_STALLED_SECONDS = 30
"""How long the listener's side waits for the rest of a message: a peer may be stopped amid one."""


class ChannelClosed(Exception):
    """The peer is gone, or the channel was closed on this side."""


class Channel:
    """One authenticated connection. `send` may be called from any thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message; raises ChannelClosed if the peer is gone."""
        try:
            with self._sending:
                self.connection.send(message)
        except (OSError, ValueError) as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> Message:
        """Return the next message, blocking; raises ChannelClosed at the end."""
        try:
            return as_message(self.connection.recv())
        except (EOFError, OSError) as error:
            raise ChannelClosed(str(error)) from error

    def close(self) -> None:
        """Close the connection; the peer sees the end of the stream."""
        self.connection.close()


def connect(address: tuple[str, int], key: bytes, hello: Hello) -> Channel:
    """Connect to a `Listener`, prove and demand knowledge of `key`, and say `hello`."""
    peer = socket.create_connection(address, _HANDSHAKE_SECONDS)
    channel = Channel(_handshake(peer, key, _answer, stalled=0))
    channel.send(hello)
    return channel


class Listener:
    """Accepts authenticated channels on a free loopback port, in the background."""

    def __init__(self, key: bytes, host: str = LOOPBACK) -> None:
        self._key = key
        self._closed = threading.Event()
        self._arrived: SimpleQueue[tuple[Hello, Channel]] = SimpleQueue()
        self._socket = socket.create_server((host, 0), backlog=1024)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        threading.Thread(target=self._accept, name="pprank-accept", daemon=True).start()

    def arrived(self, timeout: float) -> tuple[Hello, Channel] | None:
        """Return the next peer that has authenticated itself, or None after `timeout` seconds."""
        try:
            return self._arrived.get(timeout=max(timeout, 0))
        except Empty:
            return None

    def close(self) -> None:
        """Stop listening. Channels that were handed out stay open."""
        # shutdown wakes the accept call; close alone would leave its thread blocked for ever
        self._closed.set()
        with suppress(OSError):  # not connected, says the kernel, and wakes the thread all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
                # one thread a handshake: a silent peer holds up itself alone
                threading.Thread(target=self._admit, args=(peer,), daemon=True).start()
            except (OSError, RuntimeError):
                if self._closed.wait(_ACCEPT_AGAIN_SECONDS):
                    return  # otherwise out of descriptors or threads, for now

    def _admit(self, peer: socket.socket) -> None:
        try:
            channel = Channel(_handshake(peer, self._key, _challenge, stalled=_STALLED_SECONDS))
            hello = channel.receive()
        except (OSError, EOFError, AuthenticationError, ChannelClosed, TypeError):
            return  # not one of ours; _handshake has closed the connection
        if isinstance(hello, Hello) and hello.protocol == PROTOCOL:
            self._arrived.put((hello, channel))
        else:
            channel.close()


def _handshake(
    peer: socket.socket,
    key: bytes,
    authenticate: Callable[[Connection, bytes], None],
    *,
    stalled: int,
) -> Connection:
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _set_timeouts(peer, _HANDSHAKE_SECONDS)
    keep = peer.dup()
    connection = Connection(peer.detach())
    try:
        authenticate(connection, key)
        _set_timeouts(keep, stalled)
    except BaseException:
        connection.close()
        raise
    finally:
        keep.close()
    return connection


def _challenge(connection: Connection, key: bytes) -> None:
    deliver_challenge(connection, key)
    answer_challenge(connection, key)


def _answer(connection: Connection, key: bytes) -> None:
    answer_challenge(connection, key)
    deliver_challenge(connection, key)


def _set_timeouts(peer: socket.socket, seconds: int) -> None:
    # the connection uses its descriptor directly, so the timeout (0: none) must live in the kernel
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
