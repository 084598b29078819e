"""The pinned set of packages for SGLang without a GPU, as kept in ``cpu.lock``."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).with_name("cpu.lock")

TORCH_NEEDS = frozenset(
    {"torch", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "numpy"}
    | {"setuptools", "sympy", "typing-extensions"}
)
"""torch's own requirements, with theirs, and numpy: what `--torch-only` takes of the lock."""


def pins(only: frozenset[str] | None = None) -> dict[str, str]:
    """Return name -> version of the lock's packages that apply to this interpreter."""
    found: dict[str, str] = {}
    for line in requirement_lines():
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and (only is None or name in only):
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def requirement_lines(leave_out: frozenset[str] = frozenset()) -> list[str]:
    """Return the lock's lines without comments and without the packages to leave out."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    return [line for line in kept if name_of(line) not in leave_out]


def name_of(line: str) -> str:
    """Return the canonical name of the package that a requirement line is about."""
    return canonicalize_name(Requirement(line).name)
