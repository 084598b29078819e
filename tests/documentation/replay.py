"""Do what a page says: lay out its files, run its commands, compare what they print."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from documentation.blocks import Block, Command, blocks, command_needs_sglang, needs_sglang
from documentation.pages import ROOT, pages

_DIFFERS = (
    (re.compile(r"\d+\.\d+ ?s\b"), "N s"),  # seconds
    (re.compile(r"\bpids? \d+"), "pid N"),
    (re.compile(r"(\w+\.py):\d+"), r"\1:N"),  # SGLang's lines: other releases, other numbers
    (re.compile(r"[=\-_]{2,}"), "=="),  # rulers, as long as a line has room
)
"""What is not the same in each run, and what it becomes on both sides."""


@dataclass(frozen=True)
class Step:
    """A command of a page, with its block and those before it: what a reader has by then."""

    block: Block
    earlier: tuple[Block, ...]
    command: Command

    def __str__(self) -> str:
        """Return where it is: the id of its test."""
        return str(self.block)

    def lay_out(self, folder: Path) -> Path:
        """Fill a folder with the examples and the files of the page."""
        ignored = shutil.ignore_patterns("__*")
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=ignored)
        for each in self.earlier:
            if each.file:
                (folder / each.file).write_text(each.text, encoding="utf-8")
        if self.earlier and self.earlier[-1].language == "diff":
            apply = ["git", "apply", "-p0", "-"]  # not patch: a bare Debian does not have it
            subprocess.run(apply, cwd=folder, input=self.earlier[-1].text, text=True, check=True)
        return folder

    @cached_property
    def needs_sglang(self) -> bool:
        """Whether it can only be run beside SGLang."""
        with TemporaryDirectory() as scratch:
            return command_needs_sglang(self.command.line, self.lay_out(Path(scratch)))


def steps() -> list[Step]:
    """Return all commands of all pages, in order."""
    return [it for page in pages() for it in _steps(page)]


def _steps(page: Path) -> Iterator[Step]:
    found = blocks(page)
    for index, block in enumerate(found):
        yield from (Step(block, tuple(found[:index]), it) for it in block.commands)


def modules(*, need_sglang: bool) -> list[Block]:
    """Return the blocks that are modules of tests, with SGLang or without."""
    found = [it for page in pages() for it in blocks(page) if it.is_tests]
    return [it for it in found if needs_sglang(it.text) is need_sglang]


def outcomes(number: int, printed_by_pytest: str) -> set[str]:
    """Return how the tests of the file ``test_NUMBER.py`` ended, by the output of -v."""
    return set(re.findall(rf"^test_{number}\.py::\S+ ([A-Z]+)", printed_by_pytest, re.MULTILINE))


def words(command: Command) -> list[str]:
    """Return what is started for a command: this Python, and no cache or order of others."""
    program, *arguments = shlex.split(command.line)
    if program == "pytest":
        quiet = ["-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:asyncio"]
        return [sys.executable, "-m", "pytest", *quiet, *arguments]
    assert program == "python", f"{command.line}: its output cannot be compared here"
    return [sys.executable, *arguments]


def printed(command: Command, folder: Path, environment: Mapping[str, str]) -> str:
    """Return what a command prints, run in `folder`."""
    done = subprocess.run(
        words(command),
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout


def is_as_shown(shown: str, found: str) -> bool:
    """Say whether a run has printed what a page shows; ``...`` stands for anything, or nothing."""
    whole = _alike(found)
    first, *more = [_alike(piece) for piece in shown.split("...")]
    if not more:
        return first == whole
    *middle, last = more
    position = len(first)
    for piece in middle:
        position = whole.find(piece, position) + len(piece)
        if position < len(piece):
            return False
    ends = whole.startswith(first) and whole.endswith(last)
    return ends and position <= len(whole) - len(last)


def _alike(text: str) -> str:
    for pattern, word in _DIFFERS:
        text = pattern.sub(word, text)
    return " ".join(text.split())
