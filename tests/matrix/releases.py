"""The releases of SGLang that have a lock, and their tox environments."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from packaging.specifiers import SpecifierSet

from matrix.product import PACKAGE, ROOT

LOCKS = ROOT / PACKAGE / "provision" / "locks"


def locked(folder: Path = LOCKS) -> list[str]:
    """Return the releases that have a lock, oldest first."""
    return sorted((file.stem for file in folder.glob("[0-9]*.txt")), key=age)


def age(release: str) -> list[int]:
    """Return a sort key of releases: 0.5.9 < 0.5.13 < 0.5.13.post1."""
    return [int(number) for number in re.findall(r"\d+", release)]


def environment(release: str) -> str:
    """Return the name of a release's tox environment, as tox.ini has it."""
    return f"sglang{release.replace('.', '')}"


def older_one(commit: str, python: str = "", folder: Path = LOCKS) -> str:
    """Return the release that CI runs on this commit in addition to the newest one.

    Another commit may get another release, but each run of a commit gets the same one.
    """
    python = python or platform.python_version()
    *older, _ = [it for it in locked(folder) if python in _pythons(folder / f"{it}.txt")]
    return older[int(commit[:8], 16) % len(older)]


def _pythons(lock: Path) -> SpecifierSet:
    found = re.search(r"^# requires-python: (.+)$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{lock} does not say its Python"
    return SpecifierSet(found.group(1))
