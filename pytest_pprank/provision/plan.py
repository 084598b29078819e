"""Decides what to install. Pure functions: all facts are arguments, nothing is looked up."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from packaging.version import Version

from pytest_pprank.errors import UsageError
from pytest_pprank.provision.facts import TORCH_CPU_INDEX, Facts
from pytest_pprank.provision.lock import (
    OTHER_TORCH,
    TORCH_NEEDS,
    default_version,
    lock_file,
    pins,
    version_of,
)
from pytest_pprank.sglang.static.release import OLDEST_TORCH

_WITH_TORCH = ("torch", "torchvision", "torchaudio", "triton")
"""Packages built for one torch: if the installed torch stays, the installed ones of these stay."""


class Wanted(Enum):
    """The set of packages that the environment should have."""

    CPU = "SGLang without its CUDA packages"
    CUDA = "SGLang with its CUDA packages"
    TORCH = "torch alone"


class TorchFrom(Enum):
    """The source of torch."""

    HERE = "the torch that is installed"
    CONFIGURED = "the CPU build that pip's configuration offers"
    CPU_INDEX = "the CPU build of PyTorch's own index"
    OTHER = f"the CPU build of torch {OTHER_TORCH} that pip's configuration offers"
    REGISTRY = "pip's default index"


@dataclass(frozen=True)
class Install:
    """One call of ``pip install``.

    Without `lock` it installs only `requirements`; with it also the lines of that release's lock,
    except the packages in `leave_out`.
    """

    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    lock: str = ""
    leave_out: frozenset[str] = field(default_factory=frozenset)

    def arguments(self, lock_path: str) -> list[str]:
        """Return pip's arguments; the lock's lines are read from `lock_path`."""
        lock = ["-r", lock_path] if self.lock else []
        return ["install", "--no-compile", *self.options, *lock, *self.requirements]

    def __str__(self) -> str:
        """Return an equivalent command line for bash."""
        lock = str(lock_file(self.lock))
        shown = shlex.join(["python", "-m", "pip", *self.arguments(lock)])
        if not self.leave_out:
            return shown
        without = "|".join(sorted(self.leave_out))
        filtered = f"<(grep -vE {shlex.quote(f'^({without})==')} {shlex.quote(lock)})"
        return shown.replace(shlex.quote(lock), filtered)


def wanted(facts: Facts, *, cpu: bool, cuda: bool, torch_only: bool) -> Wanted:
    """Choose the set: the requested one, else the one that fits the machine and its torch."""
    if torch_only:
        return Wanted.TORCH
    if cuda:
        return Wanted.CUDA
    # A CPU build of torch on a machine with a GPU is the user's choice, and stays.
    cpu_torch = facts.torch is not None and facts.torch.endswith("+cpu")
    return Wanted.CUDA if facts.gpu and not cpu and not cpu_torch else Wanted.CPU


def check_torch(facts: Facts) -> None:
    """Raise UsageError if an installed torch, which must stay, is too old."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if facts.torch is not None and Version(facts.torch) < Version(oldest):
        raise UsageError(
            f"torch {facts.torch} is installed here and set-up never replaces a torch; SGLang "
            f"needs {oldest} or newer: use a fresh environment, or pip install -U torch"
        )


def torch_sources(
    facts: Facts,
    pip_offers: Callable[[str], bool],
    index_answers: Callable[[], bool],
    release: str = "",
) -> Iterator[TorchFrom]:
    """Yield sources of torch for a CPU-only set, best first; lazily, as each query takes time."""
    if facts.torch is not None:
        yield TorchFrom.HERE
        return
    if pip_offers(cpu_build(release)):
        yield TorchFrom.CONFIGURED
        return
    if index_answers():
        yield TorchFrom.CPU_INDEX
    if pins(release=release)["torch"] != OTHER_TORCH and pip_offers(_other_build()):
        yield TorchFrom.OTHER
        return
    yield TorchFrom.REGISTRY


def cpu_install(want: Wanted, facts: Facts, source: TorchFrom, release: str = "") -> Install:
    """Return the pip call for a set without CUDA packages (Wanted.CPU or Wanted.TORCH).

    `release`: the SGLang whose lock is used; default: the newest one for this Python.
    """
    leave_out = _left_out(facts, source)
    torch = {
        TorchFrom.CONFIGURED: (cpu_build(release),),
        TorchFrom.CPU_INDEX: (cpu_build(release),),
        TorchFrom.OTHER: (_other_build(),),
    }.get(source, ())
    index = ("--extra-index-url", TORCH_CPU_INDEX) if source is TorchFrom.CPU_INDEX else ()
    options = ("--no-deps", *index)
    if want is Wanted.CPU:
        lock = release or default_version()
        return Install(torch, options, lock=lock, leave_out=leave_out)
    needed = pins(TORCH_NEEDS - leave_out - ({"torch"} if torch else frozenset()), release)
    return Install((*torch, *_lines(needed)), options)


def _left_out(facts: Facts, source: TorchFrom) -> frozenset[str]:
    """Return the packages of the lock to skip, because torch is not the pinned one."""
    if source is TorchFrom.OTHER:
        return frozenset({"torch"})
    if source is not TorchFrom.HERE:
        return frozenset()
    return frozenset(it for it in _WITH_TORCH if it == "torch" or it in facts.installed)


def without_sglang(install: Install) -> Install:
    """Return a pip call that installs all that SGLang needs, but not SGLang itself."""
    return replace(install, leave_out=install.leave_out | {"sglang"})


def full_install(
    want: Wanted, facts: Facts, release: str = "", checkout: Path | None = None
) -> Install:
    """Return the pip call with all dependencies; an installed torch is pinned to its version.

    `checkout`: the folder of SGLang's pyproject.toml, instead of a release.
    """
    keep = (f"torch=={facts.torch}",) if facts.torch is not None else ()
    if checkout is not None and want is not Wanted.TORCH:
        return Install(keep, ("-e", str(checkout)))
    if want is Wanted.TORCH:
        return Install(keep or (f"torch=={pins(release=release)['torch']}",))
    return Install((f"sglang=={version_of(release or default_version())}", *keep))


def replaced(install: Install, facts: Facts) -> list[str]:
    """Return "name old -> new" for installed packages that the lock has in another version."""
    if not install.lock:
        return []
    return [
        f"{name} {facts.installed[name]} -> {version}"
        for name, version in pins(release=install.lock).items()
        if name not in install.leave_out and facts.installed.get(name, version) != version
    ]


def cpu_build(release: str = "") -> str:
    """Return the requirement for the CPU build of the torch that a release pins."""
    return f"torch=={pins(release=release)['torch']}+cpu"


def _other_build() -> str:
    return f"torch=={OTHER_TORCH}+cpu"


def _lines(versions: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]
