"""A failure that no traceback stands for, shown the way pytest shows its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Writer(Protocol):
    """What of pytest's TerminalWriter is used here."""

    def line(self, s: str = "", **markup: bool) -> None:
        """Write a line."""

    def sep(self, sepchar: str, title: str | None = None) -> None:
        """Write a line of `sepchar` around a title."""


@dataclass
class Crash:
    """What summaries and annotations read: pytest's reprcrash, at the test itself."""

    message: str
    path: str = ""
    lineno: int = 0

    def __str__(self) -> str:
        first = self.message.partition("\n")[0]
        return f"{self.path}:{self.lineno}: {first}" if self.path else first


class PlainFailure:
    """Verdict, text and titled sections; pytest prints it like any other failure."""

    def __init__(self, verdict: str, text: str) -> None:
        self._text = f"{verdict}: {text}" if verdict else text
        self.reprcrash = Crash(self._text)
        self._sections: list[tuple[str, str]] = []

    def locate(self, path: str, lineno: int) -> None:
        """Say which test this is about; `lineno` counts from 1."""
        self.reprcrash.path, self.reprcrash.lineno = path, lineno

    def addsection(self, name: str, content: str) -> None:
        """Append a titled block, as pytest's own representations do."""
        self._sections.append((name, content))

    def toterminal(self, tw: Writer) -> None:
        """Write everything to pytest's terminal."""
        for line in self._text.splitlines():
            tw.line(f"E   {line}", bold=True, red=True)
        for name, content in self._sections:
            tw.sep("-", name)
            for line in content.splitlines():
                tw.line(line)

    def __str__(self) -> str:
        blocks = [self._text, *(f"--- {name} ---\n{content}" for name, content in self._sections)]
        return "\n".join(blocks)
