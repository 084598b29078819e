"""The files a process has imported, and whether they have changed since.

These are the files of all loaded modules, all other files in the folders of loaded packages (data,
modules that are imported later), mapped libraries, the ``.pth`` files, and the metadata of each
installed distribution. The names in the folders on sys.path count, too: an import may find a new
one. Size, modification time and inode are compared.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

_Stamp = tuple[int, int, int] | None
_IMPORTABLE = (".py", ".so", ".pth", ".egg-link", ".dist-info", ".egg-info")
_IN_DISTRIBUTION = ("RECORD", "PKG-INFO", "direct_url.json")
_NOT_FILES = ("/dev/", "/memfd:", "/SYSV")
_CACHE = "__pycache__"


class ImportedFiles:
    """The files this process has imported up to now, except those below the folder `own`."""

    def __init__(self, own: str) -> None:
        packages = set(_package_folders())
        self._packages = {folder: _listing(folder) for folder in packages}
        self._paths = {folder: _importable(folder) for folder in map(os.path.abspath, sys.path)}
        files = {*_module_files(), *_mapped_files(), *_installed(self._paths)}
        files |= {f"{folder}/{name}" for folder, names in self._packages.items() for name in names}
        self._files = {path: _stamp(path) for path in files if not path.startswith(own)}
        self._folders = {path: _time(path) for path in (*self._packages, *self._paths)}

    def __len__(self) -> int:
        return len(self._files)

    def changed(self) -> str:
        """Return the path of a file or folder that has changed; empty if none has."""
        for path, stamp in self._files.items():
            if _stamp(path) != stamp:
                return path
        for path, then in list(self._folders.items()):
            now = _time(path)
            if now == then:
                continue
            for known, look in ((self._packages, _listing), (self._paths, _importable)):
                if path in known and look(path) != known[path]:
                    return path
            self._folders[path] = now
        return ""

    def changed_since(self, nanoseconds: int) -> str:
        """Return the path of a file whose change time (ctime) is after `nanoseconds`; else "".

        `nanoseconds`: since the epoch, before the imports began. The process may have imported the
        earlier version of such a file.
        """
        for path, stamp in self._files.items():
            with suppress(OSError):
                if stamp not in (None, (0, 0, 0)) and os.stat(path).st_ctime_ns > nanoseconds:
                    return path
        return ""


def _modules() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]


def _module_files() -> Iterator[str]:
    for module in _modules():
        # not by getattr: some modules generate attributes on access
        file = vars(module).get("__file__")
        if isinstance(file, str) and os.path.isabs(file):
            yield file


def _package_folders() -> Iterator[str]:
    for module in _modules():
        folders = vars(module).get("__path__") or ()
        with suppress(Exception):  # __path__ may be any object
            yield from [folder for folder in folders if os.path.isabs(folder)]


def _mapped_files() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path and not f"/{path}".startswith(_NOT_FILES) and not path.endswith(" (deleted)"):
            yield f"/{path}"


def _installed(paths: dict[str, frozenset[str]]) -> Iterator[str]:
    for folder, names in paths.items():
        for name in names:
            if name.endswith(".pth"):
                yield f"{folder}/{name}"
            elif name.endswith((".dist-info", ".egg-info")):
                yield from (f"{folder}/{name}/{file}" for file in _IN_DISTRIBUTION)


def _listing(folder: str) -> frozenset[str]:
    """Return the names of files in a package's folder, and of folders that may be packages."""
    try:
        return frozenset(name for name in os.listdir(folder) if name != _CACHE)
    except OSError:
        return frozenset()


def _importable(folder: str) -> frozenset[str]:
    """Return the names that an import could find in a folder of sys.path.

    The folder may contain unrelated files.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return frozenset()
    return frozenset(
        entry.name
        for entry in entries
        if entry.name.endswith(_IMPORTABLE)
        or (entry.name.isidentifier() and entry.name != _CACHE and entry.is_dir())
    )


def _stamp(path: str) -> _Stamp:
    """Return what changes with the file's contents; for a folder, only that it is one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino


def _time(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
