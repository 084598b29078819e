"""Imports what was installed, in a fresh process: ``python -m pytest_pprank.provision.verify``.

Argument: ``torch``, or ``cpu`` / ``cuda`` for SGLang's Scheduler on that device. Prints one line
with the versions.
"""

from __future__ import annotations

import platform
import sys

from pytest_pprank.sglang.static.installed import installed


def main(what: str) -> None:
    """Import torch, or the real Scheduler as the ranks do, and print the versions."""
    import torch

    found = f"torch {torch.__version__}, Python {platform.python_version()}"
    if what != "torch":
        from pytest_pprank.sglang.platform.preload import import_sglang

        import_sglang(what)
        found = f"SGLang {installed()}, {found}"
    print(found)


if __name__ == "__main__":
    main(sys.argv[1])
