"""Import what was installed, in a process of its own: ``python -m pytest_pprank.provision.verify``.

Argument: ``torch``, or ``cpu`` / ``cuda`` for SGLang's Scheduler on that device. Prints one line
with the versions.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata


def main(what: str) -> None:
    """Import torch, or the real Scheduler exactly as the ranks do, and print what it is."""
    import torch

    found = f"torch {torch.__version__}, Python {platform.python_version()}"
    if what != "torch":
        from pytest_pprank.sglang.preload import import_sglang

        import_sglang(what)
        found = f"SGLang {_sglang_version()}, {found}"
    print(found)


def _sglang_version() -> str:
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return "(a checkout)"


if __name__ == "__main__":
    main(sys.argv[1])
