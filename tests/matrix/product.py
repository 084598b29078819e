"""The code that a run used: the git tree of the package at a commit."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "pytest_pprank"


@dataclass(frozen=True)
class Product:
    """The package at a commit; `changed`: the files that differ from it."""

    commit: str
    tree: str
    changed: tuple[str, ...] = ()


def is_checkout(root: Path = ROOT) -> bool:
    """Return whether this is a git checkout (an sdist is not)."""
    return (root / ".git").exists()


def product(root: Path = ROOT) -> Product:
    """Return the checked-out product; works in a shallow clone, too."""
    status = git("status", "--porcelain", "--", PACKAGE, root=root)
    changed = tuple(line[3:] for line in status.splitlines())
    return Product(git("rev-parse", "HEAD", root=root), tree_of("HEAD", root), changed)


def tree_of(commit: str, root: Path = ROOT) -> str:
    """Return the git tree of the package at a commit; "" if this clone lacks the commit."""
    return git("rev-parse", "--verify", "--quiet", f"{commit}:{PACKAGE}", root=root, check=False)


def git(*arguments: str, root: Path = ROOT, check: bool = True) -> str:
    """Return git's output; the checkout may belong to another user, as in a container."""
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=check)
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""
