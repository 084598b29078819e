"""One worker group run by torch.distributed.elastic, the engine behind torchrun."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Collection
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


class _Kills:
    """Kills ranks of an agent of torch's, which goes on with the others.

    An agent ends all ranks as soon as one has ended badly. So those that are killed are made to
    look done to it, in the thread in which it looks at them.
    """

    def __init__(self, agent: Any) -> None:
        self.wanted: frozenset[int] = frozenset()
        """The ranks to kill. Another thread assigns it, and only ever adds some."""
        self.done: frozenset[int] = frozenset()
        self._agent = agent
        self._monitor = agent._monitor_workers
        agent._monitor_workers = self._kill_and_monitor

    def _kill_and_monitor(self, *args: object, **kwargs: object) -> object:
        for rank in sorted(self.wanted - self.done):
            self.done |= {rank}
            self._kill(rank)
        return self._monitor(*args, **kwargs)

    def _kill(self, rank: int) -> None:
        context = self._agent._pcontext
        process = context._pc.processes[rank]
        context._pc.sentinels.pop(process.sentinel, None)
        context._return_values[rank] = None
        _signal_tree(process.pid, signal.SIGKILL)


class ElasticGroup:
    """A worker group of `nproc` processes, each running `entrypoint(*arguments)`.

    torch's own `elastic_launch` builds the same agent and hides it. We keep the agent: it alone
    knows the process ids of workers that never connected to us.
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
        self._released = False
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
            # for output of a rank before it is redirected to the controller
            logs_specs=DefaultLogsSpecs(log_dir=log_dir, redirects=Std.ALL),
            start_method=start_method,
            **_shutdown_timeout(),
        )
        self._kills = _Kills(self._agent)

    def run(self) -> tuple[dict[int, int], int]:
        """Run until every process has ended; return the exit codes by rank, and the failed rank.

        The latter is the rank that elastic saw fail first (-1: none); elastic ends the others
        itself. Must be called in the main thread: elastic installs signal handlers there.
        """
        try:
            result = self._agent.run("pprank")
        finally:
            self._handler.shutdown()
        failed = {rank: failure.exitcode for rank, failure in result.failures.items()}
        codes = dict(enumerate(process.exitcode for process in self._processes()))
        return {**codes, **failed}, next(iter(failed), -1)

    def _processes(self) -> list[BaseProcess]:
        """Return the processes: elastic itself reports only the exit code of the first failure."""
        context = getattr(self._agent, "_pcontext", None)
        return list(getattr(getattr(context, "_pc", None), "processes", ()))

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the group and their children, from any thread."""
        for rank, worker in enumerate(self._agent.get_worker_group("pprank").workers):
            if isinstance(worker.id, int) and rank not in self._kills.done:
                _signal_tree(worker.id, number)

    def kill_ranks(self, ranks: Collection[int]) -> None:
        """Kill some ranks and their children soon, and go on with the others; from any thread."""
        self._kills.wanted |= {*ranks}

    def release(self) -> None:
        """Let elastic go on if it waits for ranks that were killed while they waited for it.

        A rank that is done waits for an event of multiprocessing, until elastic has its result.
        Who sets such an event waits for every waiter to wake up, for ever if one was killed.
        """
        context = getattr(self._agent, "_pcontext", None)
        event = getattr(context, "_worker_finished_event", None)
        woken = getattr(getattr(event, "_cond", None), "_woken_count", None)
        pids = [worker.id for worker in self._agent.get_worker_group("pprank").workers]
        alive = any(isinstance(pid, int) and _is_alive(pid) for pid in pids)
        if woken is None or alive or self._released:
            return
        self._released = True  # once: the event counts who wakes up
        for _ in pids:
            woken.release()


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def use_plain_log_format() -> None:
    """Give torch's log lines a plain format.

    torch's own formatter (TorchLogsFormatter in torch/_logging/_internal.py) imports torch._dynamo
    to format its first exception. That takes seconds, between the death of a rank and the end of
    its group.
    """
    for name in ("torch", "torch.distributed"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))


def use_fast_method_names() -> None:
    """Make torch's rendezvous get the name of an event's method without inspect.stack().

    inspect.stack() searches all loaded modules for each frame's module. In a kept launcher, which
    has imported SGLang, that takes seconds for each group.
    """
    names: Any = dynamic_rendezvous
    if hasattr(names, "get_method_name"):
        names.get_method_name = _method_name


def _method_name(depth: int = 2) -> str:
    return sys._getframe(depth).f_code.co_name


def _shutdown_timeout() -> dict[str, int]:
    """Return the argument for the shutdown timeout if this torch has it: 2.11 has a fixed 30 s."""
    known = "shutdown_timeout" in inspect.signature(LocalElasticAgent).parameters
    return {"shutdown_timeout": SHUTDOWN_SECONDS} if known else {}


def _signal_tree(pid: int, number: int) -> None:
    """Signal the process group that rank `pid` leads, or only the rank if it leads none yet."""
    for send in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            send(pid, number)
            return
