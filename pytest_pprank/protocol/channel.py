"""Authenticated message channels over loopback TCP.

The HMAC challenge is the one of `multiprocessing.connection`. This module adds what its `Listener`
lacks: a peer that connects and stays silent delays no other peer, and nothing is unpickled before
both sides have proved that they know the key. After that each message is a frame: the length of its
pickle, then the pickle.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from queue import Empty, SimpleQueue

from pytest_pprank.protocol.messages import PROTOCOL, Hello, Message, as_message

LOOPBACK = "127.0.0.1"
_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 16
_HANDSHAKE_SECONDS = 10
_ACCEPT_AGAIN_SECONDS = 0.2
_STALLED_SECONDS = 30
"""How long the listener's side waits for the rest of a message, as its sender may be stopped."""


class ChannelClosed(Exception):
    """The peer has closed the connection or died, or the channel was closed on this side."""


def pack(message: Message) -> bytes:
    """Return the frame of a message, for `Channel.send_packed`."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Channel:
    """One authenticated connection. Any thread may `send`; only one at a time may `receive`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._arrived: list[bytes] = []
        self._wanted = 0

    def fileno(self) -> int:
        """Return the file descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send one message; raises ChannelClosed if the peer is gone."""
        self.send_packed(pack(message))

    def send_packed(self, frame: bytes) -> None:
        """Send a frame made by `pack`, which can be sent to several peers."""
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> Message:
        """Return the next message, blocking; raises ChannelClosed at the end of the stream."""
        while (message := self._next()) is None:
            self._read(0)
        return message

    def receive_ready(self) -> list[Message]:
        """Return the messages that have arrived, without blocking; the list may be empty.

        Raises ChannelClosed at the end of the stream, once all earlier messages have been returned.
        """
        closed = None
        try:
            self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except ChannelClosed as error:
            closed = error
        messages = []
        while self._arrived and (message := self._next()) is not None:
            messages.append(message)
        if closed is not None and not messages:
            raise closed
        return messages

    def wait(self, seconds: float) -> bool:
        """Wait for data or the end of the stream, and return whether there is either."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def close(self) -> None:
        """Close the connection; the peer sees the end of the stream."""
        self._socket.close()

    def __del__(self) -> None:
        # also of a channel never taken from the listener: an open socket causes a ResourceWarning
        self._socket.close()

    def _read(self, flags: int) -> None:
        try:
            # Atomic for the interpreter: a signal handler that raises (Ctrl-C) runs before or after
            # it, never in between, so data that was read is kept for the next call.
            self._arrived.extend(map(self._socket.recv, (_CHUNK,), (flags,)))
        except BlockingIOError as error:
            if flags:
                raise
            raise ChannelClosed(str(error)) from error  # SO_RCVTIMEO has expired
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not self._arrived[-1]:
            raise ChannelClosed("the peer has closed the connection")

    def _next(self) -> Message | None:
        """Remove the first message from the received data and return it; None if incomplete."""
        arrived = self._arrived
        if len(arrived) > 1:
            if sum(map(len, arrived)) < self._wanted:
                return None
            arrived[:] = [b"".join(arrived)]
        data = arrived[0] if arrived else b""
        self._wanted = _LENGTH.size
        if len(data) >= _LENGTH.size:
            self._wanted += _LENGTH.unpack_from(data)[0]
        if len(data) < self._wanted or not data:
            return None
        arrived[:] = [data[self._wanted :]] if len(data) > self._wanted else []
        return as_message(pickle.loads(memoryview(data)[_LENGTH.size : self._wanted]))


def connect(address: tuple[str, int], key: bytes, hello: Hello) -> Channel:
    """Connect to a `Listener`, authenticate in both directions with `key`, and send `hello`."""
    peer = socket.create_connection(address, _HANDSHAKE_SECONDS)
    with _handshake(peer, stalled=0) as connection:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send_bytes(pickle.dumps(hello))
    return Channel(peer)


class Listener:
    """Accepts authenticated channels on a free loopback port, in background threads."""

    def __init__(self, key: bytes, host: str = LOOPBACK) -> None:
        self._key = key
        self._closed = threading.Event()
        self._arrived: SimpleQueue[tuple[Hello, Channel]] = SimpleQueue()
        self._socket = socket.create_server((host, 0), backlog=1024)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        threading.Thread(target=self._accept, name="pprank-accept", daemon=True).start()

    def arrived(self, timeout: float) -> tuple[Hello, Channel] | None:
        """Return the next authenticated peer, or None after `timeout` seconds."""
        try:
            return self._arrived.get(timeout=max(timeout, 0))
        except Empty:
            return None

    def close(self) -> None:
        """Stop listening. Channels that were returned stay open."""
        # shutdown wakes the thread in accept(), which close alone would leave blocked for ever
        self._closed.set()
        with suppress(OSError):  # ENOTCONN, but the thread is woken nevertheless
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
                # one thread per handshake, so that a silent peer delays no other
                threading.Thread(target=self._admit, args=(peer,), daemon=True).start()
            except (OSError, RuntimeError):
                if self._closed.wait(_ACCEPT_AGAIN_SECONDS):
                    return  # if not closed, the process is out of descriptors or threads for now

    def _admit(self, peer: socket.socket) -> None:
        try:
            with _handshake(peer, stalled=_STALLED_SECONDS) as connection:
                deliver_challenge(connection, self._key)
                answer_challenge(connection, self._key)
                hello = as_message(pickle.loads(connection.recv_bytes()))
        except (OSError, EOFError, AuthenticationError, TypeError):
            return  # not a peer of this run; _handshake has closed the connection
        if isinstance(hello, Hello) and hello.protocol == PROTOCOL:
            self._arrived.put((hello, Channel(peer)))
        else:
            peer.close()


@contextmanager
def _handshake(peer: socket.socket, *, stalled: int) -> Iterator[Connection]:
    """Yield `peer` as multiprocessing's Connection, to authenticate; close `peer` on failure."""
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _set_timeouts(peer, _HANDSHAKE_SECONDS)
    try:
        with Connection(os.dup(peer.fileno())) as connection:
            yield connection
        _set_timeouts(peer, stalled)
    except BaseException:
        peer.close()
        raise


def _set_timeouts(peer: socket.socket, seconds: int) -> None:
    # multiprocessing reads the descriptor directly: the timeout (0: none) must be the kernel's
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
