"""Checks whether the command lines of a page could run: programs, options and files exist."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from configparser import ConfigParser
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from documentation import product
from documentation.blocks import Command
from documentation.pages import ROOT

_STOPS = re.compile(r"\s*(?:&&|;)\s*")


def problems(command: Command, folder: Path) -> Iterator[str]:
    """Yield what is wrong with a command line that is run in `folder`."""
    for part in _STOPS.split(command.line):
        program, *arguments = shlex.split(part)
        check = _CHECKS.get(Path(program).name)
        if check is None:
            yield f"{program}: no rule says how to check this program"
        else:
            yield from (f"{part}: {it}" for it in check(arguments, folder))


def _pytest(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    for word in arguments:
        flag, _, _ = word.partition("=")
        if flag.startswith("-") and _spelled(flag) not in pytest_flags():
            yield f"pytest has no option {flag}"
        if word.endswith(".py") or "::" in word:
            yield from _missing(word.partition("::")[0], folder)
        if word.endswith(".yaml"):
            yield from _missing(word, folder)


def _missing(file: str, folder: Path) -> Iterator[str]:
    if not (folder / file).exists():
        yield f"there is no {file}"


@cache
def pytest_flags() -> frozenset[str]:
    """Return the options that pytest has here, with its plugins, as shown by its help."""
    command = [sys.executable, "-m", "pytest", "-p", "pytest_pprank", "-c", os.devnull, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(map(_spelled, re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout)))


def _spelled(flag: str) -> str:
    """Return an option in a normalized spelling: pytest has --junit-xml and --junitxml."""
    return flag.replace("-", "")


def _python(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    del folder
    if arguments[:2] == ["-m", "pytest_pprank"]:
        yield from _of_ours(arguments[2:])
    elif arguments[:1] == ["-m"] and arguments[1].startswith("pytest_pprank."):
        if find_spec(arguments[1]) is None:
            yield f"there is no module {arguments[1]}"
    elif arguments[:2] != ["-m", "venv"]:
        yield "no rule says how to check this"


def _of_ours(arguments: Sequence[str]) -> Iterator[str]:
    said = io.StringIO()
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            _, unknown = product.command_parser().parse_known_args(own)
    except SystemExit as end:
        if end.code:
            yield said.getvalue()
    else:
        yield from (f"{it} is unknown" for it in unknown)


def _tox(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    del folder
    if arguments[:1] == ["-e"]:
        known = tox_environments()
        asked = arguments[1].split(",")
        yield from (f"tox.ini has no environment {it}" for it in asked if it not in known)
    elif arguments[:1] not in ([], ["-e"]):
        yield "only `tox` and `tox -e NAME` are known"


@cache
def tox_environments() -> frozenset[str]:
    """Return the environments of tox.ini, with ``{a,b}`` expanded."""
    ini = ConfigParser(interpolation=None)
    ini.read(ROOT / "tox.ini")
    names = [it.removeprefix("testenv:") for it in ini.sections() if it.startswith("testenv:")]
    return frozenset(each for name in names for each in _written_out(name))


def _written_out(name: str) -> Iterator[str]:
    before, braced, rest = name.partition("{")
    choices, _, after = rest.partition("}")
    if not braced:
        yield name
    else:
        yield from (before + choice + after for choice in choices.split(","))


def _pip(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    del folder
    if "install" not in arguments:
        yield "only `pip install` is known"


def _git(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    del folder
    if arguments[:1] != ["clone"]:
        yield "only `git clone` is known"


def _any(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    del arguments, folder
    yield from ()


_CHECKS: dict[str, Callable[[Sequence[str], Path], Iterator[str]]] = {
    "pytest": _pytest,
    "python": _python,
    "python3": _python,
    "tox": _tox,
    "pip": _pip,
    "uv": _pip,
    "git": _git,
    "cd": _any,
}
