"""Whose code a frame runs: this plugin's, torch's, pytest's, a library's, SGLang's or a test's.

Everything that shows a stack, or names one line of it, asks here. The answer depends on folders
that are found when they are asked for, so that moving a module changes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from types import FrameType

from pytest_pprank._pytest_compat import pytest_folders

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_INTERACTIVE = ("<doctest", "<ipython", "<stdin")
_CALLS_FOR_OTHERS = ("typing_extensions.py",)
"""Modules outside the standard library whose functions only call what they were given."""
SUITE, LAUNCH, RECORD = "suite", "launch", os.path.join("oplog", "record")
"""Folders of this plugin with rules of their own: a user's tests, what starts ranks, what wraps
operations of torch.distributed in the caller's stack.
"""
SERVICE = "_pprank_service"
"""The function that a thread of this plugin runs which serves no test: no stack shows it."""


class Owner(Enum):
    """Whose code it is. CALLER: SGLang's, a test's or another package's."""

    PLUGIN = "plugin"
    TORCH = "torch"
    PYTEST = "pytest"
    LIBRARY = "library"
    CALLER = "caller"


class Folders:
    """The folders by which files are told apart.

    `package`: this plugin's. `torch`: torch's, empty where it is not installed.
    """

    def __init__(
        self, package: str, torch: str, pytest: Iterable[str], standard: Iterable[str]
    ) -> None:
        self._package = _inside(package)
        self._suite = _inside(os.path.join(package, SUITE))
        self._launch = _inside(os.path.join(package, LAUNCH))
        self._record = _inside(os.path.join(package, RECORD))
        self._torch = _inside(torch) if torch else "\0"
        self._pytest = tuple(map(_inside, pytest))
        self._standard = tuple(map(_inside, standard))
        self.owner_of = lru_cache(4096)(self._owner_of)

    def _owner_of(self, file: str) -> Owner:
        if file.startswith(self._suite):
            return Owner.CALLER
        if file.startswith(self._package):
            return Owner.PLUGIN
        if file.startswith(self._torch):
            return Owner.TORCH
        if file.startswith(self._pytest):
            return Owner.PYTEST
        return Owner.LIBRARY if self._is_library(file) else Owner.CALLER

    def _is_library(self, file: str) -> bool:
        if file.startswith("<"):
            return not file.startswith(_INTERACTIVE)
        if os.path.basename(file) in _CALLS_FOR_OTHERS:
            return True
        # what is installed lies below the folder of the standard library
        return file.startswith(self._standard) and not any(part in file for part in _INSTALLED)

    def only_calls(self, file: str) -> bool:
        """Whether `file` only calls what it was given: the standard library's, pytest's, and what
        starts ranks.
        """
        return self.owner_of(file) in (Owner.LIBRARY, Owner.PYTEST) or file.startswith(self._launch)

    def is_wrapper(self, file: str) -> bool:
        """Whether `file` stands between the caller of an operation of torch's and torch."""
        return file.startswith(self._record)


def _inside(folder: str) -> str:
    return folder.rstrip(os.sep) + os.sep


@lru_cache(1)
def folders() -> Folders:
    """Return the folders of this process's installation; imports nothing."""
    package = os.path.dirname(os.path.abspath(__file__))
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    standard = sorted({*paths, os.path.dirname(os.__file__)})
    return Folders(package, _folder_of("torch"), pytest_folders(), standard)


def _folder_of(module: str) -> str:
    loaded = sys.modules.get(module)
    spec = importlib.util.find_spec(module) if loaded is None else loaded.__spec__
    return os.path.dirname(spec.origin or "") if spec is not None else ""


def owner_of(file: str) -> Owner:
    """Return whose code a file of a code object is."""
    return folders().owner_of(file)


def only_calls(file: str) -> bool:
    """Whether a file of a code object only calls what it was given (`Folders.only_calls`)."""
    return folders().only_calls(file)


def is_caller_code(file: str) -> bool:
    """Whether a file is SGLang's or the user's: not torch's, pytest's, a library's or ours."""
    return owner_of(file) is Owner.CALLER


def caller(first: FrameType, *but: Owner) -> FrameType:
    """Return `first`, or the nearest one that has called it and does not only call for others; it
    is none of those named in `but` either.
    """
    frame: FrameType | None = first
    while frame is not None:
        file = frame.f_code.co_filename
        if not only_calls(file) and owner_of(file) not in but:
            break
        frame = frame.f_back
    return frame or first


def is_service_thread(functions: Iterable[tuple[str, str]]) -> bool:
    """Whether a thread is one of this plugin's that serves no test.

    `functions`: (file, name) of each frame of its stack.
    """
    return any(name == SERVICE and owner_of(file) is Owner.PLUGIN for file, name in functions)
