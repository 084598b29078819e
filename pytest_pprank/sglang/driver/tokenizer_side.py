"""The tokenizer's end of the Scheduler's sockets.

The Scheduler's sockets *connect*. Unless another socket binds, its messages pile up and keep the
process alive at exit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.messages import rpc_socket_of

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import PortArgs, Socket


class TokenizerSide:
    """Sockets of the process that SGLang calls the tokenizer manager; used on stage 0.

    Each DP rank has its own; in a server the DP ranks share all but `requests`.

    `requests` sends to the Scheduler. `outputs` receives its outputs with ``skip_tokenizer_init``;
    without, `texts`, the detokenizer's socket, does.
    """

    def __init__(self, ports: PortArgs) -> None:
        zmq = import_module("zmq")
        self._zmq, self._context = zmq, zmq.Context()
        self.outputs = self._bind(zmq.PULL, ports.tokenizer_ipc_name)
        self.texts = self._bind(zmq.PULL, ports.detokenizer_ipc_name)
        self.requests = self._bind(zmq.PUSH, ports.scheduler_input_ipc_name)
        rpc = rpc_socket_of(ports)
        self.rpc = None if rpc is None else self._bind(zmq.DEALER, rpc)

    def _bind(self, kind: int, name: str) -> Socket:
        socket: Socket = self._context.socket(kind)
        socket.setsockopt(self._zmq.LINGER, 0)
        socket.bind(name)
        return socket
