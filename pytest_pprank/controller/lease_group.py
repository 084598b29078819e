"""The lease of a worker group: from pytest's options to the ranks' environment."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext

import pytest

from pytest_pprank.devices import gpu_environment, visible_gpus
from pytest_pprank.launch.leases import Lease, LeaseQueue, cpu_slots
from pytest_pprank.options import options_of
from pytest_pprank.report.again import command_line
from pytest_pprank.topology import Topology


class GroupLease:
    """Acquires what a worker group needs before it starts, and releases it after its end."""

    def __init__(self, config: pytest.Config) -> None:
        given = options_of(config)
        self._what = given.lease
        self._queue = LeaseQueue(
            _command(config), given.lease_timeout, lambda text: _show(config, text)
        )
        self._lease: Lease | None = None
        self.environment: Mapping[str, str] = {}

    def take(self, topology: Topology) -> None:
        """Wait for the devices of `topology`; raises LeaseError if they do not become free.

        Afterwards `environment` has the variables that limit the ranks to their devices.
        """
        self.give_back()
        ranks = topology.world_size
        if topology.device == "cuda" and self._what != "off":
            gpus = {gpu.key: gpu for gpu in visible_gpus()}
            self._lease = self._queue.acquire(tuple(gpus), topology.gpus)
            self.environment = gpu_environment([gpus[key] for key in self._lease.names])
        elif topology.device != "cuda" and self._what == "auto":
            slots = cpu_slots()
            self._lease = self._queue.acquire(slots, min(ranks, len(slots)))

    @property
    def wanted(self) -> bool:
        """Whether the group should end after its next test, because other runs wait."""
        return self._lease is not None and self._lease.wanted

    def give_back(self) -> None:
        """Release the lease. Call it only when the group's processes have ended."""
        lease, self._lease, self.environment = self._lease, None, {}
        if lease is not None:
            lease.release()


def _command(config: pytest.Config) -> str:
    name = os.environ.get("PYTEST_XDIST_WORKER")
    return shlex.join(command_line(config)) + (f" [{name}]" if name else "")


def _show(config: pytest.Config, text: str) -> None:
    """Print a line at once, even if output is captured."""
    capture = config.pluginmanager.getplugin("capturemanager")
    reporter = config.pluginmanager.getplugin("terminalreporter")
    with nullcontext() if capture is None else capture.global_and_fixture_disabled():
        if reporter is None or hasattr(config, "workerinput"):
            # an xdist worker has no terminal, but shares the user's standard error
            print(f"\n{text}", file=sys.stderr, flush=True)
        else:
            reporter.ensure_newline()
            reporter.write(f"{text}\n", flush=True)
