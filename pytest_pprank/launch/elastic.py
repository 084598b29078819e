"""One worker group through torch.distributed.elastic, the engine behind torchrun."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.agent.server import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

MONITOR_SECONDS = 0.05
SHUTDOWN_SECONDS = 5


class ElasticGroup:
    """A worker group of `nproc` processes, each running `entrypoint(*arguments)`.

    torch's own `elastic_launch` builds the same agent and hides it; we keep it, because it alone
    knows the process ids of workers that never reached us.
    """

    def __init__(
        self,
        endpoint: str,
        nproc: int,
        log_dir: str,
        start_method: str,
        entrypoint: Callable[..., object],
        arguments: tuple[object, ...],
    ) -> None:
        use_plain_log_format()
        use_fast_method_names()
        self._handler = rendezvous_registry.get_rendezvous_handler(
            RendezvousParameters(
                backend="c10d",
                endpoint=endpoint,
                run_id=uuid.uuid4().hex,
                min_nodes=1,
                max_nodes=1,
                local_addr=endpoint.partition(":")[0],
                timeout=60,
            )
        )
        self._agent = LocalElasticAgent(
            spec=WorkerSpec(
                role="pprank",
                local_world_size=nproc,
                entrypoint=entrypoint,
                args=arguments,
                rdzv_handler=self._handler,
                max_restarts=0,
                monitor_interval=MONITOR_SECONDS,
                local_addr="127.0.0.1",
            ),
            # for what a rank says before its output goes to the controller
            logs_specs=DefaultLogsSpecs(log_dir=log_dir, redirects=Std.ALL),
            start_method=start_method,
            **_shutdown_timeout(),
        )

    def run(self) -> tuple[dict[int, int], int]:
        """Run until every process is gone; returns their exit codes by rank, and which of them
        elastic saw fail (-1: none). It has ended the others itself.

        Must be called from the main thread: elastic installs signal handlers there.
        """
        try:
            result = self._agent.run("pprank")
        finally:
            self._handler.shutdown()
        failed = {rank: failure.exitcode for rank, failure in result.failures.items()}
        codes = dict(enumerate(process.exitcode for process in self._processes()))
        return {**codes, **failed}, next(iter(failed), -1)

    def _processes(self) -> list[BaseProcess]:
        """elastic tells of the first one that failed alone; its processes know of each."""
        context = getattr(self._agent, "_pcontext", None)
        return list(getattr(getattr(context, "_pc", None), "processes", ()))

    def signal(self, number: int) -> None:
        """Send a signal to every process of the group and what they started, from any thread."""
        for worker in self._agent.get_worker_group("pprank").workers:
            if isinstance(worker.id, int):
                _signal_tree(worker.id, number)


def use_plain_log_format() -> None:
    """Give torch's log lines a plain format.

    torch's own formatter (TorchLogsFormatter in torch/_logging/_internal.py) imports torch._dynamo
    to write its first exception: seconds, between the death of a rank and the end of its group.
    """
    for name in ("torch", "torch.distributed"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))


def use_fast_method_names() -> None:
    """Let torch's rendezvous name the method of an event without inspect.stack().

    That looks up the module of each frame among all that are loaded: with SGLang's, in a launcher
    that is kept, seconds for each group.
    """
    names: Any = dynamic_rendezvous
    if hasattr(names, "get_method_name"):
        names.get_method_name = _method_name


def _method_name(depth: int = 2) -> str:
    return sys._getframe(depth).f_code.co_name


def _shutdown_timeout() -> dict[str, int]:
    """The argument as far as this torch has it: 2.11 waits its fixed 30 s."""
    known = "shutdown_timeout" in inspect.signature(LocalElasticAgent).parameters
    return {"shutdown_timeout": SHUTDOWN_SECONDS} if known else {}


def _signal_tree(pid: int, number: int) -> None:
    """Signal the process group that rank `pid` leads, or the rank alone if it leads none yet."""
    for send in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            send(pid, number)
            return
