"""Prepares a process that torch elastic has started to be a rank."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from pytest_pprank.host.output import redirect_output
from pytest_pprank.launch.parent import die_with_parent
from pytest_pprank.protocol.bootstrap import RankBootstrap
from pytest_pprank.protocol.stacks import STACKS_SIGNAL, stacks_file
from pytest_pprank.protocol.worker_data import unpack


def prepare_process(bootstrap: RankBootstrap, rank: int) -> None:
    """Set up environment, output, temp folder, process group, and the signal that prints stacks."""
    os.setsid()  # a process group of its own: children die with it, Ctrl-C does not reach it
    _close_fork_server_pipe()
    # The parent is the fork server (or the launcher). Nothing else would end or reap this process.
    die_with_parent()
    _set_environment(bootstrap)
    _set_xdist_variables(bootstrap, rank)
    os.chdir(bootstrap.folder)
    sys.path[:] = bootstrap.path
    folder = Path(bootstrap.workdir)
    redirect_output(folder, rank)
    faulthandler.enable()
    # Files that SGLang leaves are removed with the group. One folder for all its ranks: on GPUs
    # they find each other's sockets there (torch's symmetric memory, by the numbers of processes).
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None  # the fork server may have cached another answer
    stacks = stacks_file(folder, rank).open("w")
    faulthandler.register(STACKS_SIGNAL, stacks, all_threads=True)


def _close_fork_server_pipe() -> None:
    """Close the inherited pipe end by which children of a fork server keep it alive.

    If it stayed open, the fork server would outlive a killed launcher and wait for this rank, which
    waits for the end of the fork server.
    """
    server: Any = forkserver._forkserver
    alive = getattr(server, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
        server._forkserver_alive_fd = None


def _set_xdist_variables(bootstrap: RankBootstrap, rank: int) -> None:
    """Set pytest-xdist's variables, by which plugins recognise a process that does not report.

    Ranks of an xdist worker have its name, and its folder for files that its processes share.
    """
    workerinput = unpack(bootstrap.workerinputs[rank])
    os.environ["PYTEST_XDIST_WORKER"] = workerinput["workerid"]
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(workerinput["workercount"])
    os.environ["PYTEST_XDIST_TESTRUNUID"] = workerinput["testrunuid"]


def _set_environment(bootstrap: RankBootstrap) -> None:
    for name, value in bootstrap.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
