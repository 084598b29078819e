"""Asks a fresh Python process: torch and SGLang are never imported into the doctor's own."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_pprank.devices import device_environment
from pytest_pprank.errors import PprankError

SECONDS = 90.0


class ChildFailed(PprankError):
    """The process has failed; the message is the last line of its error output."""


def ask(code: str, device: str = "cpu") -> str:
    """Run code as on a rank of `device`; return the last line that it prints."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, **device_environment(device)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"no answer within {SECONDS:g} s") from None
    if done.returncode:
        raise ChildFailed(_last(done.stderr) or f"exit code {done.returncode}")
    return _last(done.stdout)


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
