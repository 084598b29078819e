"""Forks multiprocessing's fork server from the launcher, which has imported torch already.

multiprocessing starts its server as a new interpreter, which would import torch again: two to three
seconds of a core in every run. The server's program is the same in both cases.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any, NoReturn


def start() -> None:
    """Start the fork server; return while the server's preload still runs.

    A process with several threads is not forked; then multiprocessing starts the server as usual.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        forkserver.ensure_running()
        return
    names: Any = util
    spawn, names.spawnv_passfds = names.spawnv_passfds, _fork
    try:
        forkserver.ensure_running()
    finally:
        names.spawnv_passfds = spawn


def _fork(_: str | bytes, args: Sequence[str], fds: Sequence[int]) -> int:
    """Replace spawnv_passfds for ``python -c PROGRAM``: run PROGRAM in a fork of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork() or _serve(args[-1], fds)


def _serve(program: str, fds: Sequence[int]) -> NoReturn:
    code = 1
    try:
        _close_all_but({0, 1, 2, *fds})
        exec(compile(program, "<fork server>", "exec"), {})
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _close_all_but(kept: set[int]) -> None:
    for low, high in zip(sorted(kept), [*sorted(kept)[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
