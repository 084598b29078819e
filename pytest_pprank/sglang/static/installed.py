"""Finds the SGLang that would be imported, and its version, without importing it.

The version is that of the code that would be imported (or already is), not that of the installed
package metadata: a checkout on PYTHONPATH comes before a wheel in site-packages.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

UNKNOWN = "of unknown version"
_OWN = re.compile(r"^__version__ = (?:version = )?['\"]([^'\"]+)['\"]", re.MULTILINE)
_DESCRIBED = re.compile(r"v(\d+(?:\.\d+)*(?:\.post\d+)?)(?:-(\d+)-(g[0-9a-f]+))?")
_GIT_S = 10.0


@dataclass(frozen=True)
class Installed:
    """An SGLang that can be imported.

    `version`: its release, or UNKNOWN. `root`: the folder of the package. `commit`: the short
    commit of a git checkout, else "".
    """

    version: str
    root: Path
    commit: str = ""

    def __str__(self) -> str:
        commit = f", commit {self.commit}" if self.commit else ""
        return f"{self.version} ({self.root}{commit})"

    def is_older_than(self, version: str) -> bool:
        """Return whether it is older than a release; False for an unknown version."""
        try:
            return Version(self.version) < Version(version)
        except InvalidVersion:
            return False

    def is_in(self, specifier: str) -> bool:
        """Return whether it matches `specifier` (PEP 440); an unknown version counts as newest."""
        try:
            return Version(self.version) in SpecifierSet(specifier, prereleases=True)
        except InvalidVersion:
            return not any(it.operator in ("<", "<=", "==") for it in SpecifierSet(specifier))


def installed() -> Installed | None:
    """Return the SGLang that is imported here, or would be; None if there is none."""
    root = _root()
    return None if root is None else inspect_package(root)


def _root() -> Path | None:
    loaded = sys.modules.get("sglang")
    file = getattr(loaded, "__file__", None)
    if file:
        return Path(file).parent
    spec = find_spec("sglang")
    # origin is None for a namespace package, such as the root of a checkout named sglang
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def inspect_package(root: Path) -> Installed:
    """Describe the package in `root`."""
    commit = _git(root, "rev-parse", "--short=10", "HEAD")
    version = _own_version(root) or _version_of_metadata(root) or _version_of_git(root, commit)
    return Installed(version or UNKNOWN, root, commit)


def _own_version(root: Path) -> str:
    """Return the version in the package's _version.py, which SGLang's build writes; else ""."""
    file = root / "_version.py"
    found = _OWN.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found.group(1) if found else ""


def _version_of_metadata(root: Path) -> str:
    """Return the version in the installed metadata if it describes this code; else ""."""
    try:
        distribution = metadata.distribution("sglang")
    except metadata.PackageNotFoundError:
        return ""
    here = Path(str(distribution.locate_file("sglang"))).resolve() == root.resolve()
    return distribution.version if here or _is_editable(distribution, root) else ""


def _is_editable(distribution: metadata.Distribution, root: Path) -> bool:
    url = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
    folder = Path(unquote(urlparse(url).path)) if url else None
    return folder is not None and root.resolve().is_relative_to(folder.resolve())


def _version_of_git(root: Path, commit: str) -> str:
    """Return the version that setuptools-scm would derive from the last tag; else ""."""
    described = _git(root, "describe", "--tags", "--match", "v[0-9]*") if commit else ""
    found = _DESCRIBED.fullmatch(described)
    if found is None:
        return ""
    tag, since, name = found.groups()
    if since is None:
        return str(tag)
    *major, last = Version(tag).release
    return f"{'.'.join(map(str, [*major, last + 1]))}.dev{since}+{name}"


def _git(root: Path, *arguments: str) -> str:
    """Return the output of git in the checkout of the package; "" if it is no checkout."""
    if shutil.which("git") is None or not any((up / ".git").exists() for up in root.parents[:3]):
        return ""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
