"""What tox and CI install is pinned in .ci/constraints*.txt, so that a green main stays green."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ALL, PYTEST8 = "constraints.txt", "constraints-pytest8.txt"
ASK = "`tox -e relock` renews the pins, of what pyproject.toml and .ci/constraints*.in name"


def pins(file: str) -> list[Requirement]:
    lines = (ROOT / ".ci" / file).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def tox_ini() -> ConfigParser:
    parsed = ConfigParser(interpolation=None)
    assert parsed.read(ROOT / "tox.ini")
    return parsed


def from_tox_ini() -> list[tuple[str, str]]:
    ini = tox_ini()
    return [
        (PYTEST8 if section == "testenv:pytest8" else ALL, line)
        for section in ini.sections()
        for line in ini.get(section, "deps", fallback="").splitlines()
        if line
    ]


def from_pyproject() -> list[tuple[str, str]]:
    """Return the requirements, without the extra `sglang`: it has locks, and is for users only."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(requires|dependencies) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in lists] == ["requires", "dependencies"]
    build, needed = [re.findall(r'"(.+?)"', items) for _, items in lists]
    both = [(file, line) for file in (ALL, PYTEST8) for line in needed]
    return [*((ALL, line) for line in build), *both]


def from_commands() -> list[tuple[str, str]]:
    """Return what `pip install -c` installs, in commands of tox.ini and in .ci/run."""
    ini = (ROOT / "tox.ini").read_text()
    found = re.findall(r"\{\[locked\]pip_into_suite\} (.+)", ini)
    found += re.findall(r"-m pip .* install -q -c .ci/constraints.txt (.+)", ci_run())
    return [(ALL, name) for line in found for name in line.split()]


def ci_run() -> str:
    return (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(("file", "line"), [*from_tox_ini(), *from_pyproject(), *from_commands()])
def test_what_is_installed_has_a_pin_that_fits(file: str, line: str) -> None:
    wanted = Requirement(line)
    name = canonicalize_name(wanted.name)
    found = [pin.specifier for pin in pins(file) if canonicalize_name(pin.name) == name]
    assert found, f"{line} has no pin in .ci/{file}: {ASK}"
    for pin in found:
        (exact,) = pin
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), f"{line}, {name}{pin} in {file}: {ASK}"


def test_no_environment_but_newest_installs_what_is_not_pinned() -> None:
    ini = tox_ini()
    given = {
        name: ini.get(name, "constraints")
        for name in ini.sections()
        if ini.has_option(name, "constraints")
    }
    newest = next(name for name in ini.sections() if name.startswith("testenv:newest"))
    assert given == {
        "testenv": "{[locked]file}",  # all others inherit it, except the one that builds
        "testenv:.pkg": "{[locked]file}",
        "testenv:pytest8": "{[locked]file_pytest8}",
        newest: "",
    }


def test_no_command_installs_what_is_not_pinned() -> None:
    ini = tox_ini()
    pinned = [name for name in ini.sections() if not name.startswith("testenv:newest")]
    values = [value for name in pinned for value in ini[name].values()]
    lines = "\n".join([*values, ci_run()]).splitlines()
    calls = [line for line in lines if re.search(r"^(?!.*echo ).*-m pip .*\binstall ", line)]
    assert len(calls) == 2
    for line in calls:
        assert re.search(r" -c (\{\[locked\]file\}|\.ci/constraints\.txt)( |$)", line)
