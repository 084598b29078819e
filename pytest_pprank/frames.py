"""Tells whose code a frame runs: this plugin's, torch's, pytest's, a library's, SGLang's, a test's.

Everything that shows a stack, or names one line of it, uses this module. The folders are looked up
at run time, so that moving a module changes nothing.
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
"""Modules outside the standard library whose functions only call the function they were given."""
SUITE, LAUNCH, RECORD = "suite", "launch", os.path.join("oplog", "record")
"""Folders of this plugin with rules of their own.

In order: the stock suite counts as a user's tests; the code that starts ranks; the wrappers of
torch.distributed operations, which are in the caller's stack.
"""
SERVICE = "_pprank_service"
"""Name of the target function of this plugin's service threads, which no stack dump shows."""


class Owner(Enum):
    """The owner of a file's code. CALLER: SGLang, a test or another package."""

    PLUGIN = "plugin"
    TORCH = "torch"
    PYTEST = "pytest"
    LIBRARY = "library"
    CALLER = "caller"


class Folders:
    """The folders that decide who owns a file.

    `package`: this plugin's folder. `torch`: torch's, empty if it is not installed.
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
        # site-packages is inside the standard library's folder
        return file.startswith(self._standard) and not any(part in file for part in _INSTALLED)

    def only_calls(self, file: str) -> bool:
        """Return whether `file` only calls the functions it is given.

        That is code of the standard library and of pytest, and the code that starts ranks.
        """
        return self.owner_of(file) in (Owner.LIBRARY, Owner.PYTEST) or file.startswith(self._launch)

    def is_wrapper(self, file: str) -> bool:
        """Return whether `file` wraps torch.distributed operations, between caller and torch."""
        return file.startswith(self._record)


def _inside(folder: str) -> str:
    return folder.rstrip(os.sep) + os.sep


@lru_cache(1)
def folders() -> Folders:
    """Return the folders of this process's installation, without importing anything."""
    package = os.path.dirname(os.path.abspath(__file__))
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    standard = sorted({*paths, os.path.dirname(os.__file__)})
    return Folders(package, _folder_of("torch"), pytest_folders(), standard)


def _folder_of(module: str) -> str:
    loaded = sys.modules.get(module)
    spec = importlib.util.find_spec(module) if loaded is None else loaded.__spec__
    return os.path.dirname(spec.origin or "") if spec is not None else ""


def owner_of(file: str) -> Owner:
    """Return the owner of a code object's file."""
    return folders().owner_of(file)


def only_calls(file: str) -> bool:
    """Return whether a code object's file only calls what it is given (`Folders.only_calls`)."""
    return folders().only_calls(file)


def is_caller_code(file: str) -> bool:
    """Return whether a file is SGLang's or the user's, and so `Owner.CALLER`."""
    return owner_of(file) is Owner.CALLER


def caller(first: FrameType, *but: Owner) -> FrameType:
    """Return the innermost frame, from `first` outwards, that does not only call for others.

    Frames whose owner is in `but` are passed over, too. Returns `first` if no frame is left.
    """
    frame: FrameType | None = first
    while frame is not None:
        file = frame.f_code.co_filename
        if not only_calls(file) and owner_of(file) not in but:
            break
        frame = frame.f_back
    return frame or first


def is_service_thread(functions: Iterable[tuple[str, str]]) -> bool:
    """Return whether a thread is one of this plugin's service threads.

    `functions`: (file, name) of each frame of its stack.
    """
    return any(name == SERVICE and owner_of(file) is Owner.PLUGIN for file, name in functions)
