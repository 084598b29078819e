"""One worker group through torch.distributed.elastic, the engine behind torchrun."""

from __future__ import annotations

import inspect
import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.agent.server import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry

MONITOR_SECONDS = 0.05
SHUTDOWN_SECONDS = 5


class ElasticGroup:
    """A worker group of `nproc` processes, each running `entrypoint(*arguments)`.

    torch's own `elastic_launch` builds the same agent and hides it; we keep it, because it alone
    knows the process ids of workers that never reached us. `live` copies what the ranks print to
    the launcher's output, line by line.
    """

    def __init__(
        self,
        endpoint: str,
        nproc: int,
        log_dir: str,
        start_method: str,
        entrypoint: Callable[..., Any],
        arguments: tuple[Any, ...],
        *,
        live: bool = False,
    ) -> None:
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
            logs_specs=DefaultLogsSpecs(
                log_dir=log_dir, redirects=Std.ALL, tee=Std.ALL if live else Std.NONE
            ),
            log_line_prefix_template="[pp${rank}] " if live else None,
            start_method=start_method,
            **_shutdown_timeout(),
        )

    def run(self) -> dict[int, int]:
        """Run until every process is gone; returns the exit codes of the ranks that failed.

        Must be called from the main thread: elastic installs signal handlers there.
        """
        try:
            result = self._agent.run("pprank")
            return {rank: failure.exitcode for rank, failure in result.failures.items()}
        finally:
            self._handler.shutdown()

    def kill(self) -> None:
        """SIGKILL every process of the group and what they started. Callable from any thread."""
        for worker in self._agent.get_worker_group("pprank").workers:
            if isinstance(worker.id, int):
                kill_tree(worker.id)


def _shutdown_timeout() -> dict[str, int]:
    """The argument as far as this torch has it: 2.11 waits its fixed 30 s."""
    known = "shutdown_timeout" in inspect.signature(LocalElasticAgent).parameters
    return {"shutdown_timeout": SHUTDOWN_SECONDS} if known else {}


def kill_tree(pid: int) -> None:
    """SIGKILL the process group that rank `pid` leads, or the rank alone if it leads none yet."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            continue
