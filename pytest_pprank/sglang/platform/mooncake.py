"""Mooncake, SGLang's default transfer engine: whether it is installed, and what it lacks.

Imports neither torch nor sglang. Mooncake's wheel contains all it needs except a few shared
libraries of the system. Loading it in a subprocess shows which of them are missing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "mooncake-transfer-engine-non-cuda"
_MODULE = "mooncake.engine"
_LOAD_S = 60.0
_LACKS = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
_NOT_FOUND = re.compile(r"^\s*(lib\S+) => not found$", re.MULTILINE)

DEBIAN = {
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
    "libnuma.so.1": "libnuma1",
    "libcurl.so.4": "libcurl4",
    "liburing.so.2": "liburing2",
    "libnl-3.so.200": "libnl-3-200",
    "libnl-route-3.so.200": "libnl-route-3-200",
}
"""Shared libraries that some build of Mooncake needs, with their Debian and Ubuntu packages."""


def installed() -> bool:
    """Return whether the Python package is installed."""
    return find_spec("mooncake") is not None


def why_not() -> str:
    """Import Mooncake in a subprocess; return its error message, or "" if that works."""
    command = [sys.executable, "-c", f"import {_MODULE}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S, check=False)
    except subprocess.TimeoutExpired:
        return f"importing {_MODULE} took more than {_LOAD_S:.0f} s"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"exit code {done.returncode}"])[-1]


def missing_libraries(reason: str) -> tuple[str, ...]:
    """Return all shared libraries that Mooncake lacks.

    `reason`: the error of importing it, which names the first one. Empty if the error is of
    another kind.
    """
    first = _LACKS.search(reason)
    if first is None:
        return ()
    folder = Path(next(iter(find_spec("mooncake").submodule_search_locations or ())))  # type: ignore[union-attr]
    found = {first.group(1)}
    if ldd := shutil.which("ldd"):
        for file in sorted(folder.glob("engine*.so")):
            listing = subprocess.run([ldd, str(file)], capture_output=True, text=True, check=False)
            found.update(_NOT_FOUND.findall(listing.stdout))
    return tuple(sorted(found))


def packages(libraries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the known Debian packages of these libraries."""
    return tuple(DEBIAN[name] for name in libraries if name in DEBIAN)


class Diagnosis(NamedTuple):
    """What is wrong with Mooncake here; `command` fixes it, "" if no single command does."""

    what: str
    command: str = ""
    as_root: bool = False


def diagnosis(reason: str) -> Diagnosis:
    """Return what is wrong if importing Mooncake fails with `reason`."""
    if not installed():
        command = f"{sys.executable} -m pip install --no-deps {PACKAGE}"
        return Diagnosis(f"cannot be loaded: {reason}", command)
    libraries = missing_libraries(reason)
    if not libraries:
        return Diagnosis(f"cannot be loaded: {reason}")
    lacks = f"lacks {', '.join(libraries)}"
    if any(name not in DEBIAN for name in libraries):
        return Diagnosis(f"{lacks}; install the packages of your system that have them")
    named = " ".join(packages(libraries))
    return Diagnosis(lacks, f"apt-get update && apt-get install -y {named}", as_root=True)


def advice(reason: str) -> str:
    """Return one line that says what is wrong with Mooncake here, and which command fixes it."""
    what, command, as_root = diagnosis(reason)
    text = f"prefill/decode tests need Mooncake, which {what}"
    return f"{text}; run{' as root' if as_root else ''}: {command}" if command else text
