"""The control plane: only peers that know the key are accepted, and silent ones block no others."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import AuthenticationError
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pytest_pprank.protocol.channel import Channel, ChannelClosed, Listener, connect, pack
from pytest_pprank.protocol.messages import PROTOCOL, Hello, Ready, TestDone

KEY = b"k" * 32
DEADLINE = 30


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener(KEY)
    yield listener
    listener.close()


def meet(listener: Listener, rank: int = 0) -> tuple[Channel, Channel]:
    ours = connect(listener.address, KEY, Hello(rank, os.getpid()))
    arrived = listener.arrived(DEADLINE)
    assert arrived
    hello, theirs = arrived
    assert hello.rank == rank
    return ours, theirs


def test_messages_go_both_ways(listener: Listener) -> None:
    ours, theirs = meet(listener, rank=3)
    ours.send(Ready({("file", "test"): "why"}))
    assert theirs.receive() == Ready({("file", "test"): "why"})
    theirs.send(TestDone("spoiled"))
    assert ours.receive() == TestDone("spoiled")
    ours.close()
    with pytest.raises(ChannelClosed):
        theirs.receive()


def test_listens_on_loopback_only(listener: Listener) -> None:
    assert listener.address[0] == "127.0.0.1"


def test_a_wrong_key_is_refused_on_both_sides(listener: Listener) -> None:
    with pytest.raises((AuthenticationError, ChannelClosed, OSError, EOFError)):
        connect(listener.address, b"wrong" * 6, Hello(0, 1))
    meet(listener)  # and the next one is accepted


def test_idle_and_rude_peers_delay_nobody(listener: Listener) -> None:
    idle = [socket.create_connection(listener.address) for _ in range(100)]
    rude = socket.create_connection(listener.address)
    rude.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    meet(listener)
    for peer in (*idle, rude):
        peer.close()


class Bomb:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_nothing_is_unpickled_before_authentication(listener: Listener, tmp_path: Path) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "trace"))
    frame = len(payload).to_bytes(4, "big") + payload
    peer = socket.create_connection(listener.address)
    peer.sendall(frame * 3)
    meet(listener)
    peer.settimeout(DEADLINE)
    with suppress(ConnectionResetError):
        while peer.recv(4096):  # until the listener closes the connection
            pass
    peer.close()
    assert not (tmp_path / "trace").exists()


def test_another_protocol_version_is_hung_up_on(listener: Listener) -> None:
    channel = connect(listener.address, KEY, Hello(0, 1, protocol=PROTOCOL + 1))
    with pytest.raises(ChannelClosed):
        channel.receive()


def test_only_our_messages_are_accepted(listener: Listener) -> None:
    ours, theirs = meet(listener)
    ours.send({"not": "a message"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dict"):
        theirs.receive()


class Recorder:
    """A proxy to the listener that records what is sent in both directions."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.sent: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = self._server.getsockname()
        self._target = target
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def _forward(self) -> None:
        peer, _ = self._server.accept()
        with peer, socket.create_connection(self._target) as behind:
            answers = threading.Thread(target=self._pump, args=(behind, peer, []), daemon=True)
            answers.start()
            self._pump(peer, behind, self.sent)
            behind.shutdown(socket.SHUT_RDWR)
            answers.join()

    def _pump(self, source: socket.socket, sink: socket.socket, kept: list[bytes]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                kept.append(data)
                sink.sendall(data)

    def close(self) -> None:
        self._server.close()
        self._thread.join()


def test_a_recorded_conversation_is_worth_nothing(listener: Listener) -> None:
    recorder = Recorder(listener.address)
    connect(recorder.address, KEY, Hello(1, 2)).close()
    arrived = listener.arrived(DEADLINE)
    assert arrived
    assert arrived[0] == Hello(1, 2)
    recorder.close()
    hung_up_on = suppress(ConnectionResetError, BrokenPipeError)
    with hung_up_on, socket.create_connection(listener.address, DEADLINE) as replay:
        for data in recorder.sent:
            replay.sendall(data)
        while replay.recv(65536):
            pass
    meet(listener, rank=5)  # no other connection was accepted in between


def test_a_message_that_breaks_off_is_the_end_of_its_sender_alone(listener: Listener) -> None:
    ours, theirs = meet(listener, rank=0)
    other, other_theirs = meet(listener, rank=1)
    ours.send_packed(pack(TestDone("x" * 1000))[:100])
    assert not theirs.receive_ready()
    ours.close()
    with pytest.raises(ChannelClosed):
        theirs.receive()
    other.send(TestDone())
    assert other_theirs.receive() == TestDone()


def test_a_large_message_arrives_in_pieces_and_what_follows_it_too(listener: Listener) -> None:
    ours, theirs = meet(listener)
    large, small = TestDone("x" * 5_000_000), TestDone("small")

    def send() -> None:
        ours.send(large)
        ours.send(small)

    sender = threading.Thread(target=send)
    sender.start()
    received: list[object] = []
    while len(received) < 2 and theirs.wait(DEADLINE):
        received += theirs.receive_ready()
    sender.join()
    assert received == [large, small]


class Alarm(Exception):
    pass


def test_an_interrupted_receive_loses_nothing(listener: Listener) -> None:
    """A signal handler raises, at any step of many receives, as Ctrl-C may."""
    ours, theirs = meet(listener)
    messages = [TestDone("x" * length) for length in (10, 300_000, 20, 30)]

    def send() -> None:
        for message in messages:
            ours.send(message)

    threading.Thread(target=send, daemon=True).start()
    received: list[object] = []
    interrupted = 0
    step = last = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal step
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_name == "_read":
            step += 1
            if step == last:
                raise Alarm
        return trace

    before = sys.gettrace()
    while len(received) < len(messages):
        step, last = 0, last + 1
        sys.settrace(trace)
        try:
            message = theirs.receive()
        except Alarm:
            interrupted += 1
            continue
        finally:
            sys.settrace(before)
        received.append(message)
        last = 0
    assert received == messages
    assert interrupted > 10  # fewer opcodes in later Pythons


def test_a_hundred_idle_connections(listener: Listener) -> None:
    idle = [socket.create_connection(listener.address) for _ in range(100)]
    ours, theirs = meet(listener, rank=7)
    ours.send(TestDone())
    assert theirs.receive() == TestDone()
    for peer in idle:
        peer.close()
