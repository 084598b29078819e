"""`disagg.bootstrap`: SGLang's bootstrap server, which a test can stop and start again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.compat.disagg import kv_manager
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.driver.disagg_start import (
    bootstrap_ports,
    start_bootstrap,
    stop_bootstrap,
)
from pytest_pprank.words import split_instance

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler


class Bootstrap:
    """The bootstrap server, at which decode asks where prefill is, and whether it is alive.

    It runs beside the first stage of the `instance` of prefill, at `port` on loopback. The methods
    are calls of all ranks. `up`: whether it runs; the end of the test starts it again. `alive`:
    whether the instance has not been killed.
    """

    def __init__(
        self,
        instance: str,
        scheduler: Scheduler,
        pprank: Pprank,
        meet: Callable[[str, object], object],
    ) -> None:
        self.instance = instance
        self.port = bootstrap_ports()[split_instance(instance)[1]]
        self.up = self.alive = True
        self._here = pprank.instance == instance
        self._scheduler = scheduler
        self._pprank = pprank
        self._meet = meet

    def stop(self) -> None:
        """End the server: it closes its connections, and its port refuses new ones."""
        self._check("stop")
        if not self.up:
            raise UsageError("disagg.bootstrap.stop: the server has been stopped already")
        if self._here:
            stop_bootstrap()
        self._meet("disagg.bootstrap.stop()", None)
        self.up = False

    def start(self) -> None:
        """Start a new server at the same port, with which all stages of its prefill register."""
        self._check("start")
        if self.up:
            raise UsageError("disagg.bootstrap.start: the server runs")
        if self._here:
            start_bootstrap(self._scheduler.server_args, self._pprank)
        self._meet("disagg.bootstrap.start()", None)
        if self._here:
            need(kv_manager(self._scheduler), "register_to_bootstrap")()
        self._meet("disagg.bootstrap.start()", None)
        self.up = True

    def _check(self, call: str) -> None:
        __tracebackhide__ = True
        if not self.alive:
            raise UsageError(
                f"disagg.bootstrap.{call}: {self.instance} is dead, the server with it"
            )
