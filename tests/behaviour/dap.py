"""A client of the debug adapter protocol, with as much of it as a test needs."""

from __future__ import annotations

import itertools
import json
import socket
from typing import Any

_SECONDS = 60


class Client:
    """Attached to one rank: sends requests, and reads what comes until it is the wanted one."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), _SECONDS)
        self._stream = self._socket.makefile("rb")
        self._numbers = itertools.count(1)
        self._kept: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Attach, as an editor does, without breakpoints of its own."""
        self.answer(self.send("initialize", adapterID="test", clientID="test"))
        attach = self.send("attach", justMyCode=False)
        self.event("initialized")
        self.answer(self.send("configurationDone"))
        self.answer(attach)

    def send(self, command: str, **arguments: object) -> int:
        """Send a request; return its number."""
        number = next(self._numbers)
        request = {"seq": number, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(request).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        return number

    def answer(self, number: int) -> dict[str, Any]:
        """Return the body of the answer to a request."""
        message = self._until("request_seq", number)
        assert message["success"], message
        return dict(message.get("body") or {})

    def event(self, name: str) -> dict[str, Any]:
        """Return the body of the next event of that name."""
        return dict(self._until("event", name).get("body") or {})

    def place(self, thread: int) -> tuple[str, int]:
        """Return function and line in which a thread has stopped."""
        body = self.answer(self.send("stackTrace", threadId=thread))
        top = body["stackFrames"][0]
        return top["name"], top["line"]

    def close(self) -> None:
        """Detach."""
        self._stream.close()
        self._socket.close()

    def _until(self, key: str, value: object) -> dict[str, Any]:
        for message in self._kept:
            if message.get(key) == value:
                self._kept.remove(message)
                return message
        while (message := self._read()).get(key) != value:
            self._kept.append(message)
        return message

    def _read(self) -> dict[str, Any]:
        length = 0
        while (line := self._stream.readline().strip()) or not length:
            assert line, "the rank has closed the connection"
            length = int(line.partition(b":")[2])
        return dict(json.loads(self._stream.read(length)))
