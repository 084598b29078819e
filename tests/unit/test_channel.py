"""The control plane: only peers that know the key are heard, and silent ones hold up nobody."""

import os
import pickle
import socket
from contextlib import suppress
from multiprocessing import AuthenticationError

import pytest

from pytest_pprank.wire.channel import ChannelClosed, Listener, connect, ready_channels
from pytest_pprank.wire.messages import PROTOCOL, Hello, Ready, TestDone

KEY = b"k" * 32
DEADLINE = 30


@pytest.fixture
def listener():
    listener = Listener(KEY)
    yield listener
    listener.close()


def meet(listener, rank=0):
    ours = connect(listener.address, KEY, Hello(rank, os.getpid()))
    hello, theirs = listener.arrived(DEADLINE)
    assert hello.rank == rank
    return ours, theirs


def test_messages_go_both_ways(listener):
    ours, theirs = meet(listener, rank=3)
    ours.send(Ready({("file", "test"): "why"}))
    assert theirs.receive() == Ready({("file", "test"): "why"})
    theirs.send(TestDone("spoiled"))
    assert ours.receive() == TestDone("spoiled")
    ours.close()
    with pytest.raises(ChannelClosed):
        theirs.receive()


def test_listens_on_loopback_only(listener):
    assert listener.address[0] == "127.0.0.1"


def test_ready_channels(listener):
    pairs = [meet(listener, rank) for rank in range(3)]
    pairs[1][0].send(TestDone())
    assert ready_channels([theirs for _, theirs in pairs], DEADLINE) == [pairs[1][1]]
    assert ready_channels([pairs[0][1]], 0) == []


def test_a_wrong_key_is_refused_on_both_sides(listener):
    with pytest.raises((AuthenticationError, ChannelClosed, OSError, EOFError)):
        connect(listener.address, b"wrong" * 6, Hello(0, 1))
    meet(listener)  # and the next one gets in


def test_idle_and_rude_peers_delay_nobody(listener):
    idle = [socket.create_connection(listener.address) for _ in range(100)]
    rude = socket.create_connection(listener.address)
    rude.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    meet(listener)
    for peer in (*idle, rude):
        peer.close()


class Bomb:
    """Would leave a trace if anybody unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_is_unpickled_before_authentication(listener, tmp_path):
    payload = pickle.dumps(Bomb(tmp_path / "trace"))
    frame = len(payload).to_bytes(4, "big") + payload
    peer = socket.create_connection(listener.address)
    peer.sendall(frame * 3)
    meet(listener)
    peer.settimeout(DEADLINE)
    with suppress(ConnectionResetError):
        while peer.recv(4096):  # until the listener has hung up on it
            pass
    peer.close()
    assert not (tmp_path / "trace").exists()


def test_another_protocol_version_is_hung_up_on(listener):
    channel = connect(listener.address, KEY, Hello(0, 1, protocol=PROTOCOL + 1))
    with pytest.raises(ChannelClosed):
        channel.receive()


def test_only_our_messages_are_accepted(listener):
    ours, theirs = meet(listener)
    ours.connection.send({"not": "a message"})
    with pytest.raises(TypeError, match="dict"):
        theirs.receive()
