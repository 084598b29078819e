"""The pinned packages for SGLang without a GPU: one file in ``locks`` per release.

A parameter `release` may also be the path of a lock file elsewhere.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from pytest_pprank.errors import UsageError, did_you_mean

FOLDER = Path(__file__).with_name("locks")
_REQUIRES = "# requires-python:"

TORCH_NEEDS = frozenset(
    {"torch", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "numpy"}
    | {"setuptools", "sympy", "typing-extensions"}
)
"""torch's requirements, theirs, and numpy: what `--torch-only` takes from the lock."""

OTHER_TORCH = "2.13.0"
"""The torch with which every locked release has been run.

Used if the CPU build of the torch that a release pins is not available.
"""


def locked_versions() -> list[str]:
    """Return the releases of SGLang that have a lock, oldest first."""
    return sorted((file.stem for file in FOLDER.glob("*.txt") if _is_lock(file)), key=Version)


def _is_lock(file: Path) -> bool:
    return file.stem[:1].isdigit()


def lock_file(release: str) -> Path:
    """Return the path of the lock of an SGLang release, whether or not it exists."""
    return Path(release) if os.sep in release else FOLDER / f"{release}.txt"


def version_of(release: str) -> str:
    """Return the version of SGLang that a lock installs."""
    return pins(frozenset({"sglang"}), release)["sglang"]


def default_version(python: str = "") -> str:
    """Return the newest locked release that runs on a Python version (default: this one)."""
    python = python or platform.python_version()
    fits = [it for it in locked_versions() if python in SpecifierSet(requires_python(it))]
    return fits[-1]


def requires_python(release: str) -> str:
    """Return the Python versions that a locked release runs on, as a specifier."""
    lines = lock_file(release).read_text(encoding="utf-8").splitlines()
    return next(it.removeprefix(_REQUIRES).strip() for it in lines if it.startswith(_REQUIRES))


def check_version(version: str) -> str:
    """Return `version`; raises UsageError if it has no lock or needs another Python."""
    known = locked_versions()
    if version not in known:
        raise UsageError(
            f"--sglang {version}: no lock for that release{did_you_mean(version, known)}; "
            f"there are {', '.join(known)}"
        )
    _check_python(version, f"--sglang {version}")
    return version


def check_lock(file: Path) -> str:
    """Return a lock file as a release; raises UsageError if it is not a lock for this Python."""
    release, given = str(file.resolve()), f"--lock {file}"
    try:
        version_of(release)
        _check_python(release, given)
    except OSError as error:
        raise UsageError(f"{given}: {error.strerror}") from error
    except (ValueError, KeyError, StopIteration) as error:
        raise UsageError(
            f"{given}: not a lock of `python -m pytest_pprank.provision.resolve --output`"
        ) from error
    return release


def _check_python(release: str, given: str) -> None:
    python = platform.python_version()
    if python not in SpecifierSet(requires_python(release)):
        raise UsageError(
            f"{given}: needs Python {requires_python(release)}, this is {python}; "
            f"the newest for this Python is {default_version()}"
        )


def pins(only: frozenset[str] | None = None, release: str = "") -> dict[str, str]:
    """Return name -> version of a lock's packages that apply to this interpreter."""
    found: dict[str, str] = {}
    for line in requirement_lines(release=release):
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and (only is None or name in only):
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def requirement_lines(leave_out: frozenset[str] = frozenset(), release: str = "") -> list[str]:
    """Return a lock's lines without comments and without the packages in `leave_out`."""
    file = lock_file(release or default_version())
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    return [line for line in kept if name_of(line) not in leave_out]


def name_of(line: str) -> str:
    """Return the canonical name of the package in a requirement line."""
    return canonicalize_name(Requirement(line).name)
