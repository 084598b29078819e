"""Sends what this rank prints to the controller, and not into pytest's own capture.

pytest's capture would keep the output in a file of this process until the end of the phase. Then
the last output of a rank that dies or hangs would be lost, and a flood of output would fill the
disk.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from pytest_pprank.protocol.pipes import STREAMS, pipe_file


def redirect_output(workdir: Path, rank: int) -> None:
    """Make file descriptors 1 and 2, and sys.stdout and sys.stderr, write to the rank's pipes."""
    for descriptor, stream in enumerate(STREAMS, start=1):
        pipe = os.open(pipe_file(workdir, rank, stream), os.O_WRONLY)
        os.dup2(pipe, descriptor)
        os.close(pipe)
        # unbuffered: output must not be lost if this process dies
        raw = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115
        text = io.TextIOWrapper(raw, "utf-8", errors="replace", newline="", write_through=True)
        setattr(sys, stream, text)
        setattr(sys, f"__{stream}__", text)
