"""docs/neighbours.md: a row for each plugin of `tox -e neighbours`, with its tests."""

from __future__ import annotations

import ast
import re
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "neighbours.md").read_text()
    table = text.partition("| --- |")[2].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def pins() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(pin.name, set()).add(str(pin.specifier).removeprefix("=="))
    return found


def installed_by_tox() -> set[str]:
    ini = ConfigParser(interpolation=None)
    ini.read(ROOT / "tox.ini")
    lines = ini.get("testenv:neighbours", "deps").splitlines()
    return {Requirement(line).name for line in lines if line}


def functions_of(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text())
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def test_each_plugin_has_a_row() -> None:
    with_us = {"pytest-timeout"}  # a requirement of ours
    assert sorted(row[0] for row in rows()) == sorted(installed_by_tox() | with_us)
    assert len(rows()) >= 25


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_row(row: list[str]) -> None:
    """The row names the version that is locked and installed, and tests that exist."""
    plugin, said, works, _, shown = row
    assert said in pins()[plugin]
    assert version(plugin) in pins()[plugin]
    assert works
    tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown)
    assert tests
    for file, test in tests:
        assert test in functions_of(file), f"{plugin}: no test {test} in {file}"


def test_each_test_is_named_by_a_row() -> None:
    named = {word for row in rows() for word in re.findall(r"::(test_\w+)`", row[-1])}
    files = sorted(path.name for path in HERE.glob("test_*.py"))
    tests = {
        test
        for file in files
        if file != Path(__file__).name
        for test in functions_of(file)
        if test.startswith("test_")
    }
    assert tests - named <= {"test_junit"}, "a test that no row of docs/neighbours.md names"
