"""Messages about a start appear in the terminal's line for a while, and leave no trace."""

from __future__ import annotations

import io

import pytest

from pytest_pprank.controller import progress
from pytest_pprank.controller.progress import Progress


class File(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Writer:
    fullwidth, width_of_current_line = 80, 10
    _file: File


class Reporter:
    def __init__(self, terminal: bool = True) -> None:
        self._tw = Writer()
        self._tw._file = self.file = File(terminal)

    def ensure_newline(self) -> None:
        self.file.write("<newline>")

    def write(self, text: str, **_: object) -> None:
        self.file.write(text)


class Config:
    def __init__(self, reporter: Reporter | None, verbosity: int = 0) -> None:
        self.pluginmanager = self
        self.getplugin = lambda name: {"terminalreporter": reporter}[name]
        self.get_verbosity = lambda: verbosity


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)


def shown(reporter: Reporter, *texts: str, verbosity: int = 0) -> str:
    line = Progress(Config(reporter, verbosity))  # type: ignore[arg-type]
    line.announce("importing torch")
    with line.waiting():
        for text in texts:
            line.show(text)
    return reporter.file.getvalue()


def test_on_a_terminal_words_come_and_go() -> None:
    assert shown(Reporter(), "importing a", "importing a", "importing b") == (
        "\x1b7 [pprank: importing a, 0 s]\x1b[K\x1b8"
        "\x1b7 [pprank: importing b, 0 s]\x1b[K\x1b8\x1b[K"
    )


def test_nothing_runs_into_the_next_line() -> None:
    words = shown(Reporter(), "x" * 100).split("\x1b")[1]
    assert len(words) == 1 + 80 - 10
    full = Reporter()
    full._tw.width_of_current_line = 75
    assert shown(full, "importing a") == ""


def test_elsewhere_there_is_one_whole_line() -> None:
    assert shown(Reporter(terminal=False), "a", "b") == "<newline>pprank: importing torch\n"
    assert shown(Reporter(terminal=False), "a", verbosity=-1) == ""


def test_a_terminal_that_knows_no_escapes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Reporter(), "a") == "<newline>pprank: importing torch\n"


def test_what_is_quick_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 60.0)
    assert shown(Reporter(), "a") == ""


def test_a_worker_of_xdist_shows_nothing() -> None:
    line = Progress(Config(None))  # type: ignore[arg-type]
    line.announce("a")
    with line.waiting():
        line.show("b")
