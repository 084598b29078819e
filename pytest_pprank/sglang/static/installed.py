"""Which SGLang is here: its version and where it lies, without importing it.

The version is that of the code which would be imported (or has been), not of whatever package
metadata happens to be installed: a checkout on PYTHONPATH goes before a wheel in site-packages.
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
    """An SGLang that can be imported: `version` (or UNKNOWN), `root` of the package, and for a git
    checkout its short `commit`.
    """

    version: str
    root: Path
    commit: str = ""

    def __str__(self) -> str:
        commit = f", commit {self.commit}" if self.commit else ""
        return f"{self.version} ({self.root}{commit})"

    def is_older_than(self, version: str) -> bool:
        """Say whether it comes before a release; one of unknown version does not."""
        try:
            return Version(self.version) < Version(version)
        except InvalidVersion:
            return False

    def is_in(self, specifier: str) -> bool:
        """Say whether it is one of some releases; one of unknown version is where the newest is."""
        try:
            return Version(self.version) in SpecifierSet(specifier, prereleases=True)
        except InvalidVersion:
            return not any(it.operator in ("<", "<=", "==") for it in SpecifierSet(specifier))


def installed() -> Installed | None:
    """Return the SGLang that is imported here, or would be; None where there is none."""
    root = _root()
    return None if root is None else look_at(root)


def _root() -> Path | None:
    loaded = sys.modules.get("sglang")
    file = getattr(loaded, "__file__", None)
    if file:
        return Path(file).parent
    spec = find_spec("sglang")
    # origin is None for a mere folder named sglang, such as a checkout's root
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def look_at(root: Path) -> Installed:
    """Return what is known of the package that lies in `root`."""
    commit = _git(root, "rev-parse", "--short=10", "HEAD")
    version = _own_version(root) or _version_of_metadata(root) or _version_of_git(root, commit)
    return Installed(version or UNKNOWN, root, commit)


def _own_version(root: Path) -> str:
    """Return what the package's own _version.py says, which its build has written."""
    file = root / "_version.py"
    found = _OWN.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found.group(1) if found else ""


def _version_of_metadata(root: Path) -> str:
    """Return what the installed metadata says, if it is about this code."""
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
    """Return the version that follows from the last tag, as setuptools-scm would count it."""
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
    """Return what git says of a checkout that holds the package; empty for no checkout."""
    if shutil.which("git") is None or not any((up / ".git").exists() for up in root.parents[:3]):
        return ""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
