"""The code blocks of a page, and what each of them is for.

- `python` without a file name is a module of tests; all of them must pass.
- A block after ``<!-- file: NAME -->`` is a file that the reader writes. A later command of the
  page with output below it must use that file.
- `diff` is a change of such a file or of an example, for the commands of the next block only.
- `console` has commands, each after ``$ ``. A command with output below it is run, and must print
  that output (``...`` stands for anything). The other commands are only checked. What the output
  shows behind a prompt of pdb is typed there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from documentation import product

_BLOCK = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\n+)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_INDENTED = re.compile(r"\n\n {4}\S")
_FOR_ALL = ("conftest.py", "pytest.ini", "pyproject.toml")
"""Files that each command uses without naming them."""
_NEEDS_SGLANG = re.compile(
    r"pytest_pprank\.suite|--pprank-revert|pytest_pprank (regressions|new-regression|seams|mutate)"
)


@dataclass(frozen=True)
class Command:
    """A command line, and its expected output; "" if the page does not show it."""

    line: str
    output: str = ""

    def uses(self, file: str) -> bool:
        """Return whether the command uses the file, by name or implicitly."""
        return file in self.line or file in _FOR_ALL


@dataclass(frozen=True)
class Block:
    """A block of a page; `number`: the line on which it begins."""

    page: str
    number: int
    language: str
    text: str
    file: str = ""

    def __str__(self) -> str:
        """Return page and line: the id of its test."""
        return f"{self.page}:{self.number}"

    @cached_property
    def commands(self) -> tuple[Command, ...]:
        """The commands of a console block."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        return tuple(_command(part) for part in parts[1:]) if self.language == "console" else ()

    @property
    def is_run(self) -> bool:
        """Whether any of its commands is run."""
        return any(it.output for it in self.commands)

    @property
    def is_tests(self) -> bool:
        """Whether it is a module of tests that must pass."""
        return self.language == "python" and not self.file


def _command(text: str) -> Command:
    line, _, output = text.replace("\\\n", " ").partition("\n")
    return Command(line.partition("  # ")[0].strip(), output.rstrip())


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.stem, text.count("\n", 0, it.start()) + 1, it["language"], it["text"],
              it["file"] or "")
        for it in _BLOCK.finditer(text)
    ]  # fmt: skip


def problems(page: Path) -> Iterator[str]:
    """Yield blocks that no test would run, or could run."""
    found = blocks(page)
    text = page.read_text(encoding="utf-8")
    if len(found) * 2 != len(re.findall(r"^ *```", text, re.MULTILINE)):
        yield "a block is not closed, or is indented"
    if _INDENTED.search(_BLOCK.sub("", text)):
        yield "a block without a language, by indentation: use ```"
    for index, block in enumerate(found):
        if why := _uncovered(block, found[index + 1 :]):
            yield f"{block}: {why}"


def _uncovered(block: Block, later: Sequence[Block]) -> str:
    if block.file:
        used = any(it.uses(block.file) for each in later for it in each.commands if it.output)
        return "" if used else f"no later command whose output is shown uses {block.file}"
    if block.language == "python":
        return "" if "def test_" in block.text else "no test, and no <!-- file: ... --> before it"
    if block.language == "diff":
        return "" if later and later[0].is_run else "no command with its output comes next"
    if block.language == "console":
        return "" if block.text.startswith("$ ") else "does not begin with a command (`$ `)"
    return f"{block.language or 'no language'!r}: python, console, diff, or a file"


def needs_sglang(source: str) -> bool:
    """Return whether the tests of a module need SGLang."""
    if "mark.sglang" in source or "model_path" in source:
        return True
    functions = [it for it in ast.walk(ast.parse(source)) if isinstance(it, ast.FunctionDef)]
    names = {argument.arg for it in functions for argument in it.args.args}
    ours = {it.name for it in product.fixtures()}
    return bool(names & ours - product.WITHOUT_SGLANG)


def command_needs_sglang(line: str, folder: Path) -> bool:
    """Return whether a command needs SGLang, with the files that are in `folder`."""
    files = [folder / word for word in line.split() if (folder / word).is_file()]
    tests = [it for it in files if it.suffix == ".py"]
    return bool(_NEEDS_SGLANG.search(line)) or any(needs_sglang(it.read_text()) for it in tests)
