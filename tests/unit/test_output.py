"""Output of ranks is read to its end and kept within bounds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_pprank.controller.live import LiveLines
from pytest_pprank.controller.log_dir import LogDir
from pytest_pprank.controller.output import KEPT_BYTES, RankPipes, Tail
from pytest_pprank.errors import UsageError
from pytest_pprank.protocol.pipes import pipe_file


def test_a_tail_keeps_all_of_little() -> None:
    tail = Tail(10)
    tail.append(b"ab")
    tail.append(b"cd")
    assert tail.take() == "abcd"
    assert tail.take() == ""


def test_a_tail_keeps_the_end_of_much_and_counts_the_rest() -> None:
    tail = Tail(10)
    for _ in range(1000):
        tail.append(b"0123456")
    text = tail.take()
    assert text.endswith("\n4560123456")
    assert text.startswith("[6990 bytes before this are left out")
    tail.append(b"anew")
    assert tail.take() == "anew"


def test_a_tail_makes_junk_readable() -> None:
    tail = Tail()
    tail.append(b"\xff\xfe\x00ok")
    assert tail.take() == "\ufffd\ufffd\x00ok"


@pytest.fixture
def received() -> list[tuple[int, str, bytes]]:
    return []


@pytest.fixture
def pipes(tmp_path: Path, received: list[tuple[int, str, bytes]]) -> Iterator[RankPipes]:
    made = RankPipes(tmp_path, 2, [lambda *said: received.append(said)])
    yield made
    made.close()


def write(tmp_path: Path, rank: int, stream: str, data: bytes) -> None:
    fd = os.open(pipe_file(tmp_path, rank, stream), os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)


def test_each_rank_and_stream_has_its_own(
    pipes: RankPipes, tmp_path: Path, received: list[tuple[int, str, bytes]]
) -> None:
    write(tmp_path, 0, "stdout", b"out")
    write(tmp_path, 1, "stderr", b"err")
    assert pipes.take(0) == {"stdout": "out"}
    assert pipes.take(1) == {"stderr": "err"}
    assert pipes.take(1) == {}
    assert received == [(0, "stdout", b"out"), (1, "stderr", b"err")]


def test_a_flood_is_read_while_it_comes(pipes: RankPipes, tmp_path: Path) -> None:
    total = 64 << 20

    def flood() -> None:
        with open(pipe_file(tmp_path, 0, "stdout"), "wb", buffering=0) as file:
            for _ in range(total >> 16):
                file.write(b"x" * (1 << 16))

    writer = threading.Thread(target=flood)
    writer.start()
    while writer.is_alive():
        pipes.read()
    text = pipes.take(0)["stdout"]
    assert len(text) < KEPT_BYTES + 200
    assert f"[{total - KEPT_BYTES} bytes before" in text


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def ensure_newline(self) -> None:
        if self.text and not self.text.endswith("\n"):
            self.text += "\n"

    def write(self, content: str, *, flush: bool = False, **markup: object) -> None:  # noqa: ARG002
        self.text += content


def test_live_lines_are_whole_lines_with_a_prefix() -> None:
    terminal = Terminal()
    live = LiveLines(terminal)
    terminal.text = "test_x.py "
    live(0, "stdout", b"one\ntw")
    live(1, "stdout", b"other\n")
    live(0, "stdout", b"o\nrest")
    live.flush()
    assert terminal.text == "test_x.py \n[pp0] one\n[pp1] other\n[pp0] two\n[pp0] rest\n"


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    terminal = Terminal()
    live = LiveLines(terminal)
    for _ in range(100):
        live(0, "stdout", b"x" * 4096)
    assert terminal.text.count("\n") >= 4


def test_the_log_folder_gets_every_byte_below_the_test(tmp_path: Path) -> None:
    logs = LogDir(tmp_path / "logs", "gw0-")
    logs.begin("test_a.py::test_it[pp2]")
    logs(1, "stdout", b"\xff\x00junk\n")
    logs(1, "stdout", b"more\n")
    logs.close()
    (file,) = (tmp_path / "logs").iterdir()
    assert file.name == "gw0-pp1.stdout.log"
    assert file.read_bytes() == b"\n=== test_a.py::test_it[pp2] ===\n\xff\x00junk\nmore\n"


def test_the_log_folder_is_rotated(tmp_path: Path) -> None:
    logs = LogDir(tmp_path, limit=1000)
    for _ in range(100):
        logs(0, "stdout", b"x" * 100 + b"\n")
    logs.close()
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["pp0.stdout.log", *(f"pp0.stdout.log.{n}" for n in range(1, 5))]
    assert all(p.stat().st_size <= 1000 for p in tmp_path.iterdir())


def test_a_log_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--pprank-log-dir: '.*file/logs' is not a folder"):
        LogDir(tmp_path / "file" / "logs")
