"""Authenticated message channels over loopback TCP.

The HMAC challenge is that of `multiprocessing.connection`; this module adds what its `Listener`
lacks: a peer that connects and stays silent delays nobody, and nothing is unpickled before both
sides have proved that they know the key. After that each message is a frame: the length of its
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
"""How long the listener's side waits for the rest of a message: a peer may be stopped amid one."""


class ChannelClosed(Exception):
    """The peer is gone, or the channel was closed on this side."""


def pack(message: Message) -> bytes:
    """Return the frame of a message, for `Channel.send_packed`."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Channel:
    """One authenticated connection: `send` from any thread, `receive` from one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._arrived: list[bytes] = []
        self._wanted = 0

    def fileno(self) -> int:
        """The descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send one message; raises ChannelClosed if the peer is gone."""
        self.send_packed(pack(message))

    def send_packed(self, frame: bytes) -> None:
        """Send what `pack` has made of a message: once for all whom it is sent to."""
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> Message:
        """Return the next message, blocking; raises ChannelClosed at the end."""
        while (message := self._next()) is None:
            self._read(0)
        return message

    def receive_ready(self) -> list[Message]:
        """Return the messages that are there now, without blocking; there may be none.

        Raises ChannelClosed at the end, once all that came before it has been returned.
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
        """Wait for something to arrive, or the end; says whether it has."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def close(self) -> None:
        """Close the connection; the peer sees the end of the stream."""
        self._socket.close()

    def __del__(self) -> None:
        # one that nobody has taken from the listener, too: an open socket would be a warning
        self._socket.close()

    def _read(self, flags: int) -> None:
        try:
            # One step for the interpreter: a signal handler that raises (Ctrl-C) comes before it,
            # or after it, and then what was read is there for the next call.
            self._arrived.extend(map(self._socket.recv, (_CHUNK,), (flags,)))
        except BlockingIOError as error:
            if flags:
                raise
            raise ChannelClosed(str(error)) from error  # its time is up
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not self._arrived[-1]:
            raise ChannelClosed("the peer has closed the connection")

    def _next(self) -> Message | None:
        """Take the first message out of what has arrived; None if it is not complete."""
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
    """Connect to a `Listener`, prove and demand knowledge of `key`, and say `hello`."""
    peer = socket.create_connection(address, _HANDSHAKE_SECONDS)
    with _handshake(peer, stalled=0) as connection:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send_bytes(pickle.dumps(hello))
    return Channel(peer)


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
            with _handshake(peer, stalled=_STALLED_SECONDS) as connection:
                deliver_challenge(connection, self._key)
                answer_challenge(connection, self._key)
                hello = as_message(pickle.loads(connection.recv_bytes()))
        except (OSError, EOFError, AuthenticationError, TypeError):
            return  # not one of ours; _handshake has closed the connection
        if isinstance(hello, Hello) and hello.protocol == PROTOCOL:
            self._arrived.put((hello, Channel(peer)))
        else:
            peer.close()


@contextmanager
def _handshake(peer: socket.socket, *, stalled: int) -> Iterator[Connection]:
    """Give `peer` the form in which multiprocessing authenticates; closes it when that fails."""
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
    # multiprocessing uses the descriptor directly: the timeout (0: none) must live in the kernel
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
