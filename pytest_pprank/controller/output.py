"""What ranks print: read continuously, kept up to a limit, shown live or logged on request.

Each rank writes its stdout and stderr into two named pipes in the group's folder. The controller
reads them whenever it waits for messages. So a flood of output blocks no rank and fills neither
memory nor disk, and output of a rank that dies or hangs is not lost with the rank.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import termios
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from struct import Struct

from pytest_pprank.protocol.pipes import STREAMS, pipe_file

KEPT_BYTES = 256 * 1024
"""How much of one phase's output a report keeps, per rank and stream: the last bytes."""

Listener = Callable[[int, str, bytes], None]
"""Called with all output as it arrives: rank, ``stdout`` or ``stderr``, bytes."""

_CHUNK = 1 << 20
_INT = Struct("i")


class Tail:
    """The last `limit` bytes that were appended."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self._dropped = 0

    def append(self, data: bytes) -> None:
        """Append `data`, and drop bytes at the beginning beyond the limit."""
        self._chunks.append(data)
        self._kept += len(data)
        while self._kept - len(self._chunks[0]) >= self._limit:
            first = self._chunks.popleft()
            self._kept -= len(first)
            self._dropped += len(first)

    def take(self) -> str:
        """Return the text and start again; its first line says how many bytes were dropped."""
        if not self._chunks:
            return ""
        data = b"".join(self._chunks)
        kept = data[-self._limit :]
        dropped = self._dropped + len(data) - len(kept)
        self._chunks.clear()
        self._kept = self._dropped = 0
        text = kept.decode("utf-8", "replace")
        if not dropped:
            return text
        return f"[{dropped} bytes before this are left out; --pprank-log-dir keeps more]\n{text}"


class RankPipe:
    """The read end of one stream of one rank."""

    def __init__(self, path: Path, rank: int, stream: str, listeners: Iterable[Listener]) -> None:
        os.mkfifo(path, 0o600)
        self.rank = rank
        self.stream = stream
        self._listeners = tuple(listeners)
        self._tail = Tail()
        # also for writing: a pipe without a writer is at its end, before and after the rank's life
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError, AttributeError):  # a limit of this user; Python 3.10 on old kernels
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _CHUNK)

    def fileno(self) -> int:
        """Return the file descriptor, for selectors."""
        return self._fd

    def read(self) -> None:
        """Read what is in the pipe now, and no more: the writer may never stop."""
        waiting = self._waiting()
        while waiting > 0:
            data = os.read(self._fd, min(waiting, _CHUNK))
            waiting -= len(data)
            self._tail.append(data)
            for listener in self._listeners:
                listener(self.rank, self.stream, data)

    def take(self) -> str:
        """Return what was read since the last `take`."""
        return self._tail.take()

    def close(self) -> None:
        """Stop reading; a process that still writes gets SIGPIPE."""
        os.close(self._fd)

    def _waiting(self) -> int:
        count: int = _INT.unpack(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(_INT.size)))[0]
        return count


class RankPipes:
    """All streams of a worker group."""

    def __init__(self, workdir: Path, world_size: int, listeners: Iterable[Listener] = ()) -> None:
        listeners = tuple(listeners)
        self._epoll = select.epoll()
        self._by_rank = {
            rank: [RankPipe(pipe_file(workdir, rank, s), rank, s, listeners) for s in STREAMS]
            for rank in range(world_size)
        }
        self._by_descriptor = {p.fileno(): p for p in itertools.chain(*self._by_rank.values())}
        for descriptor in self._by_descriptor:
            self._epoll.register(descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when any pipe is, for selectors."""
        return self._epoll.fileno()

    def read(self) -> None:
        """Read what is in the pipes now."""
        for descriptor, _ in self._epoll.poll(0):
            self._by_descriptor[descriptor].read()

    def take(self, rank: int) -> dict[str, str]:
        """Return what a rank has printed since the last call, by stream, without empty streams."""
        self.read()
        return self.take_read(rank)

    def take_read(self, rank: int) -> dict[str, str]:
        """Like `take`, but without output that has arrived since the last `read`."""
        return {pipe.stream: text for pipe in self._by_rank[rank] if (text := pipe.take())}

    def close(self) -> None:
        """Close every pipe."""
        self._epoll.close()
        for pipe in self._by_descriptor.values():
            pipe.close()
