"""Decide what to install. Pure: everything that is known comes in, nothing is looked up."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from packaging.version import Version

from pytest_pprank.errors import UsageError
from pytest_pprank.provision.facts import TORCH_CPU_INDEX, Facts
from pytest_pprank.provision.lock import LOCK, TORCH_NEEDS, pins
from pytest_pprank.sglang.static import OLDEST_TORCH

_WITH_TORCH = ("torch", "torchvision", "torchaudio", "triton")
"""Built against one torch: where the torch here stays, those here stay too."""


class Wanted(Enum):
    """Which set the environment is to have."""

    CPU = "SGLang without its CUDA packages"
    CUDA = "SGLang with its CUDA packages"
    TORCH = "torch alone"


class TorchFrom(Enum):
    """Where torch comes from."""

    HERE = "the torch that is installed"
    CONFIGURED = "the CPU build that pip's configuration offers"
    CPU_INDEX = "the CPU build of PyTorch's own index"
    REGISTRY = "pip's default index"


@dataclass(frozen=True)
class Install:
    """One call of ``pip install``.

    Without `lock` it installs `requirements` alone; with it also the lock's lines, less those
    of `leave_out`.
    """

    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    lock: bool = False
    leave_out: frozenset[str] = field(default_factory=frozenset)

    def arguments(self, lock_path: str) -> list[str]:
        """Return the arguments of pip, the lock's lines being read from `lock_path`."""
        lock = ["-r", lock_path] if self.lock else []
        return ["install", "--no-compile", *self.options, *lock, *self.requirements]

    def __str__(self) -> str:
        """Return a line for bash that does the same."""
        shown = shlex.join(["python", "-m", "pip", *self.arguments(str(LOCK))])
        if not self.leave_out:
            return shown
        without = "|".join(sorted(self.leave_out))
        filtered = f"<(grep -vE {shlex.quote(f'^({without})==')} {shlex.quote(str(LOCK))})"
        return shown.replace(shlex.quote(str(LOCK)), filtered)


def wanted(facts: Facts, *, cpu: bool, cuda: bool, torch_only: bool) -> Wanted:
    """Choose the set: what was asked for, else the one that fits the machine and its torch."""
    if torch_only:
        return Wanted.TORCH
    if cuda:
        return Wanted.CUDA
    # A CPU build of torch on a machine with a GPU is somebody's choice, and it stays.
    cpu_torch = facts.torch is not None and facts.torch.endswith("+cpu")
    return Wanted.CUDA if facts.gpu and not cpu and not cpu_torch else Wanted.CPU


def check_torch(facts: Facts) -> None:
    """Raise UsageError when an installed torch, which must stay, is too old."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if facts.torch is not None and Version(facts.torch) < Version(oldest):
        raise UsageError(
            f"torch {facts.torch} is installed here and set-up never replaces a torch; SGLang "
            f"needs {oldest} or newer: use a fresh environment, or pip install -U torch"
        )


def torch_sources(
    facts: Facts, pip_offers: Callable[[str], bool], index_answers: Callable[[], bool]
) -> Iterator[TorchFrom]:
    """Yield where a CPU-only set may take torch from, best first; lazy, so ask only if needed."""
    if facts.torch is not None:
        yield TorchFrom.HERE
        return
    if pip_offers(cpu_build()):
        yield TorchFrom.CONFIGURED
        return
    if index_answers():
        yield TorchFrom.CPU_INDEX
    yield TorchFrom.REGISTRY


def cpu_install(want: Wanted, facts: Facts, source: TorchFrom) -> Install:
    """Return the one pip call for a set without CUDA packages (Wanted.CPU or Wanted.TORCH)."""
    leave_out = frozenset(
        name
        for name in _WITH_TORCH
        if source is TorchFrom.HERE and (name == "torch" or name in facts.installed)
    )
    torch = {
        TorchFrom.CONFIGURED: (cpu_build(),),
        TorchFrom.CPU_INDEX: (cpu_build(),),
    }.get(source, ())
    index = ("--extra-index-url", TORCH_CPU_INDEX) if source is TorchFrom.CPU_INDEX else ()
    options = ("--no-deps", *index)
    if want is Wanted.CPU:
        return Install(torch, options, lock=True, leave_out=leave_out)
    needed = pins(TORCH_NEEDS - leave_out - ({"torch"} if torch else frozenset()))
    return Install((*torch, *_lines(needed)), options)


def full_install(want: Wanted, facts: Facts) -> Install:
    """Return the pip call with all dependencies; an installed torch is pinned to what it is."""
    keep = (f"torch=={facts.torch}",) if facts.torch is not None else ()
    if want is Wanted.TORCH:
        return Install(keep or (f"torch=={pins()['torch']}",))
    return Install((f"sglang=={pins()['sglang']}", *keep))


def replaced(install: Install, facts: Facts) -> list[str]:
    """Return "name old -> new" for installed packages that the lock has at another version."""
    if not install.lock:
        return []
    return [
        f"{name} {facts.installed[name]} -> {version}"
        for name, version in pins().items()
        if name not in install.leave_out and facts.installed.get(name, version) != version
    ]


def cpu_build() -> str:
    """Return the requirement for the CPU build of the lock's torch."""
    return f"torch=={pins()['torch']}+cpu"


def _lines(versions: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]
