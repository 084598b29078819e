"""``setup --sglang PATH``: uses a checkout of SGLang instead of a release."""

from __future__ import annotations

import os
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from pytest_pprank.errors import UsageError
from pytest_pprank.provision.lock import default_version, locked_versions, requires_python
from pytest_pprank.sglang.static.installed import inspect_package

_PTH = "pytest_pprank_sglang.pth"


@dataclass(frozen=True)
class Checkout:
    """A folder that contains the package ``sglang``.

    `version`: that of the package. `release`: the release whose lock lists the packages it needs.
    """

    folder: Path
    version: str
    release: str

    def is_at(self, root: Path) -> bool:
        """Return whether the package in `root` is this checkout's."""
        return (self.folder / "sglang").resolve() == root.resolve()


def find_checkout(given: str) -> Checkout | None:
    """Return the checkout that ``--sglang`` names; None if it names a version.

    Raises UsageError for a folder without an SGLang, or with one that is too old.
    """
    path = Path(given).expanduser()
    if not given or (os.sep not in given and not path.is_dir()):
        return None
    for folder in (path / "python", path):
        if (folder / "sglang" / "__init__.py").is_file():
            folder = folder.resolve()
            version = inspect_package(folder / "sglang").version
            return Checkout(folder, version, _nearest_release(given, version))
    raise UsageError(
        f"--sglang {given}: not a checkout of SGLang: there is no python/sglang/__init__.py in it"
    )


def add_to_environment(checkout: Checkout, purelib: str = "") -> Path:
    """Make this environment import the checkout, as ``pip install -e`` would; return the .pth file.

    Nothing is built: a build needs a Rust compiler and the network.
    """
    file = Path(purelib or sysconfig.get_path("purelib")) / _PTH
    file.write_text(f"{checkout.folder}\n", encoding="utf-8")
    return file


def _nearest_release(given: str, version: str) -> str:
    python = platform.python_version()
    fits = [it for it in locked_versions() if python in SpecifierSet(requires_python(it))]
    try:
        before = [it for it in fits if Version(it) <= Version(version)]
    except InvalidVersion:
        return default_version()
    if not before:
        raise UsageError(f"--sglang {given}: SGLang {version}; the oldest supported is {fits[0]}")
    return before[-1]
