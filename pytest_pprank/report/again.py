"""The command that runs one failed test again, alone, as this run has run it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_pprank.options import options_of
from pytest_pprank.planning import Plan, reaches_sglang
from pytest_pprank.protocol.items import item_key
from pytest_pprank.report.text import add_line

FOLDER = "pprank_folder"
"""The key in the workerinput of an xdist worker for the folder in which the user began the run."""
_PYTESTS = (
    "-c",
    "--rootdir",
    "-o",
    "-W",
    "--import-mode",
    "--noconftest",
    "--disable-plugin-autoload",
    "--runxfail",
)
_OTHERS = ("--timeout", "--randomly-seed")  # pytest-timeout's and pytest-randomly's
_OURS = (
    "--pprank-fresh",
    "--pprank-timeout",
    "--pprank-grace",
    "--pprank-sanitize",
    "--pprank-sanitize-allow",
    "--pprank-oversubscribe",
)
"""Options that may decide about an outcome; where an ini file gives them, it does so again."""
_DEFAULTS = {"--import-mode": "prepend", "--randomly-seed": "default"}


def add_again(item: pytest.Item, plan: Plan, reports: Sequence[pytest.TestReport]) -> None:
    """Add the command to each failure among the reports of a test, as its last line."""
    failed = [report for report in reports if report.failed]
    command = again(item, plan) if failed else ""
    for report in failed if command else ():
        add_line(report, f"again: {command}")


def again(item: pytest.Item, plan: Plan) -> str:
    """Return the command, quoted for a shell in the folder of this run.

    It is empty in an xdist worker that runs in another folder than the user's.
    """
    config = item.config
    worker: Mapping[str, object] = getattr(config, "workerinput", {})
    here = str(config.invocation_params.dir)
    if worker and worker.get(FOLDER) != here:
        return ""
    words = [*program(command_line(config)[0]), *_plugins(config), *_target(item)]
    words += [*_ranks(config, plan), *_given(config, (*_OURS, *_PYTESTS, *_OTHERS))]
    return shlex.join(words)


def command_line(config: pytest.Config) -> list[str]:
    """Return the command line of the user's pytest process, also in a worker of xdist."""
    worker: Mapping[str, list[str]] = getattr(config, "workerinput", {})
    return worker.get("mainargv", sys.argv)


def program(first: str) -> list[str]:
    """Return how to begin pytest as it was begun: only ``-m`` adds the folder to sys.path."""
    if os.path.basename(first) in ("pytest", "py.test"):
        return [_on_path(first)]
    return [_on_path(sys.executable, "python"), "-m", "pytest"]


def _on_path(program: str, name: str = "") -> str:
    """Return the program's name if the shell finds it by that, else its path."""
    name = name or os.path.basename(program)
    found = shutil.which(name)
    return name if found and os.path.abspath(found) == os.path.abspath(program) else program


def _plugins(config: pytest.Config) -> Iterator[str]:
    """Yield the user's own ``-p``, not those of an ini file or of xdist."""
    args = [str(arg) for arg in config.invocation_params.args]
    given = {after.strip() for arg, after in pairwise(args) if arg == "-p"}
    given |= {arg[2:].strip() for arg in args if arg.startswith("-p")}
    for name in dict.fromkeys(config.getoption("-p") or ()):
        if name in given:
            yield from ("-p", name)


def _target(item: pytest.Item) -> list[str]:
    """Return the test as pytest takes it here; its node id depends on rootdir and arguments."""
    config = item.config
    _, *names = item_key(item)
    module = _module(config.args, item.path) if config.option.pyargs else ""
    file = module or _shown(item.path, config)
    return [*(("--pyargs",) if module else ()), "::".join([file, *names])]


def _shown(path: Path, config: pytest.Config) -> str:
    own = path.is_relative_to(config.rootpath)
    return os.path.relpath(path, config.invocation_params.dir) if own else str(path)


def _module(args: Sequence[str], path: Path) -> str:
    """Return the dotted name of a test file that one of the arguments of --pyargs has found."""
    for arg in args:
        name = arg.partition("[")[0].partition("::")[0]
        file = _file_of(name)
        if file is not None and file.name == "__init__.py" and path.is_relative_to(file.parent):
            inner = path.relative_to(file.parent).with_suffix("")
            name = ".".join([name, *inner.parts])
        if file is not None and _file_of(name) == path:
            return name
    return ""


def _file_of(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except Exception:  # importing the packages above it may raise anything
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _ranks(config: pytest.Config, plan: Plan) -> Iterator[str]:
    topology = plan.topology
    yield from ("--pp-size", str(topology.pp))
    if topology.decode:
        yield from ("--pprank-decode", str(topology.decode))
    # as it was given: it may be for one of two roles only, where a marker says it for the other
    within = {"tp": topology.tp, **topology.shares._asdict()}
    for name, asked in options_of(config).within.items():
        size = asked[0] if len(asked) == 1 else within[name]
        if size > 1:
            yield from (f"--{name}-size", str(size))
    yield from ("--pprank-device", topology.device)
    if plan.perturb is not None:
        yield from ("--pprank-perturb", str(plan.perturb))
    if reaches_sglang(plan):  # for other tests alone it is refused
        yield from _given(config, ("--pprank-revert",))


def _given(config: pytest.Config, flags: Sequence[str]) -> Iterator[str]:
    """Yield the options among `flags` that have been given, each with its value."""
    for flag in flags:
        value: object = config.getoption(flag, None)
        if value is True:
            yield flag
        elif value is not None and value is not False and value != _DEFAULTS.get(flag):
            for each in value if isinstance(value, list) else [value]:
                yield from _with_value(flag, str(each))


def _with_value(flag: str, value: str) -> tuple[str, ...]:
    """Return an option's words; a value such as ``-logs`` would be taken for an option."""
    return (f"{flag}={value}",) if value.startswith("-") else (flag, value)
