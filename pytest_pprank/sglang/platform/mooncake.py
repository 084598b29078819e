"""Mooncake, SGLang's default transfer engine: is it here, and what does it lack?

Imports neither torch nor sglang. Its wheel has what it needs but for a few libraries of the
system; which of them are missing is found by loading it in a process of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

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
"""Shared libraries that some build of Mooncake asks for, and Debian's and Ubuntu's packages."""


def installed() -> bool:
    """Say whether the Python package is here."""
    return find_spec("mooncake") is not None


def why_not() -> str:
    """Load Mooncake in a process of its own; return what it says when that fails, else ""."""
    command = [sys.executable, "-c", f"import {_MODULE}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S, check=False)
    except subprocess.TimeoutExpired:
        return f"importing {_MODULE} took more than {_LOAD_S:.0f} s"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"exit code {done.returncode}"])[-1]


def missing_libraries(reason: str) -> tuple[str, ...]:
    """Return all shared libraries that Mooncake lacks; `reason` is what it said of the first one.

    Empty where it is something else that is wrong.
    """
    first = _LACKS.search(reason)
    if first is None:
        return ()
    folder = Path(next(iter(find_spec("mooncake").submodule_search_locations or ())))  # type: ignore[union-attr]
    found = {first.group(1)}
    if ldd := shutil.which("ldd"):
        for file in sorted(folder.glob("engine*.so")):
            told = subprocess.run([ldd, str(file)], capture_output=True, text=True, check=False)
            found.update(_NOT_FOUND.findall(told.stdout))
    return tuple(sorted(found))


def packages(libraries: tuple[str, ...]) -> tuple[str, ...]:
    """Return Debian's packages with these libraries, as far as they are known."""
    return tuple(DEBIAN[name] for name in libraries if name in DEBIAN)


def advice(reason: str) -> str:
    """Return one line: what is wrong with Mooncake here, and the command that helps."""
    what = f"prefill/decode tests need Mooncake, which cannot be loaded: {reason}"
    if not installed():
        return f"{what}; run: {sys.executable} -m pip install --no-deps {PACKAGE}"
    libraries = missing_libraries(reason)
    if not libraries:
        return what
    named = packages(libraries)
    unknown = [name for name in libraries if name not in DEBIAN]
    lacks = f"prefill/decode tests need Mooncake, which lacks {', '.join(libraries)}"
    if unknown:
        return f"{lacks}; install the packages of your system that have them"
    return f"{lacks}; run as root: apt-get update && apt-get install -y {' '.join(named)}"
