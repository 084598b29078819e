"""Follows a page: lays out its files, runs its commands, compares their output."""

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

from documentation import typed
from documentation.blocks import Block, Command, blocks, command_needs_sglang, needs_sglang
from documentation.pages import ROOT, pages

_DIFFERS = (
    # seconds; from a minute on pytest adds minutes
    (re.compile(r"\d+\.\d+ ?s\b(?: \(\d+:\d\d:\d\d\))?"), "N s"),
    (re.compile(r"\bpids? \d+"), "pid N"),
    (re.compile(r"(\w+\.py):\d+"), r"\1:N"),  # line numbers, which differ between releases
    # how pytest was begun here, with the plugins that `words` leaves out
    (re.compile(r"again: (?:\S+ -m )?\S*pytest(?: -p \S+)*"), "again: pytest"),
    (re.compile(r"[=\-_]{2,}"), "=="),  # rulers, whose length depends on the line
)
"""Parts of the output that differ between runs, and their replacement on both sides."""


@dataclass(frozen=True)
class Step:
    """A command of a page, with its block and those before it: the reader's state so far."""

    block: Block
    earlier: tuple[Block, ...]
    command: Command

    def __str__(self) -> str:
        """Return page and line: the id of its test."""
        return str(self.block)

    def lay_out(self, folder: Path) -> Path:
        """Fill a folder with the examples and the page's files."""
        ignored = shutil.ignore_patterns("__*")
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=ignored)
        for each in self.earlier:
            if each.file:
                (folder / each.file).write_text(each.text, encoding="utf-8")
        if self.earlier and self.earlier[-1].language == "diff":
            apply = ["git", "apply", "-p0", "-"]  # a bare Debian has no `patch`
            subprocess.run(apply, cwd=folder, input=self.earlier[-1].text, text=True, check=True)
        return folder

    @cached_property
    def needs_sglang(self) -> bool:
        """Whether it can only be run with SGLang."""
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
    """Return the outcomes of the tests in ``test_NUMBER.py``, from pytest's -v output."""
    return set(re.findall(rf"^test_{number}\.py::\S+ ([A-Z]+)", printed_by_pytest, re.MULTILINE))


def words(command: Command) -> list[str]:
    """Return the arguments to run a command: this Python, without other caches or orders."""
    program, *arguments = shlex.split(command.line)
    if program == "pytest":
        quiet = ["-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:asyncio"]
        return [sys.executable, "-m", "pytest", *quiet, *arguments]
    assert program == "python", f"{command.line}: its output cannot be compared here"
    return [sys.executable, *arguments]


def printed(command: Command, folder: Path, environment: Mapping[str, str]) -> str:
    """Return the output of a command, run in `folder`; where the page shows it, at a prompt."""
    if said := typed.lines(command.output):
        return typed.talk(words(command), folder, environment, said)
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
    """Return whether output matches what a page shows; ``...`` stands for anything or nothing."""
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
