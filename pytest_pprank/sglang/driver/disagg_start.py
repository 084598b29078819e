"""What a prefill or decode stage needs beside its Scheduler: ports and a bootstrap server."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.errors import SEE_DOCTOR, PprankError
from pytest_pprank.rank.store import LOOPBACK
from pytest_pprank.sglang.compat.seams import fill, need
from pytest_pprank.sglang.driver.virtual_time import virtual_time
from pytest_pprank.sglang.platform import mooncake
from pytest_pprank.sglang.platform.loopback import listeners_on_loopback

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import ServerArgs

_UP_S = 30.0
"""Time limit for the bootstrap server to listen, in seconds; it needs a hundredth of one."""

_reserved: list[socket.socket] = []
_services: list[object] = []
_ports: list[int] = []


def prepare_disagg(pprank: Pprank) -> dict[str, object]:
    """Return the server args that this worker group decides at run time; empty for role ``pp``.

    A meeting of all ranks. Each instance of prefill has a bootstrap server. Decode finds it by the
    address that a request has; its own server arg is the port of the first one. A socket that is
    bound but does not listen reserves a server's port, so that no other run is given it; SGLang
    binds beside it (SO_REUSEADDR).
    """
    if pprank.role == "pp":
        return {}
    virtual_time()  # the heartbeats of SGLang's threads begin with the Scheduler
    # otherwise SGLang looks for an address that other hosts can reach
    os.environ.setdefault("SGLANG_HOST_IP", LOOPBACK)
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    if not pprank.device.startswith("cuda"):
        os.environ.setdefault("MC_FORCE_TCP", "1")
    _import_mooncake()  # reads MC_LOG_LEVEL
    port = None
    if pprank.role == "prefill" and pprank.leads_role:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        _reserved.append(holder)
        port = holder.getsockname()[1]
    _ports[:] = [port for port in pprank.gather(port) if port is not None]
    number = pprank.role_index if pprank.role == "prefill" else 0
    return {"disaggregation_bootstrap_port": _ports[number], "host": LOOPBACK}


def bootstrap_ports() -> tuple[int, ...]:
    """Return the ports of the bootstrap servers, one for each instance of prefill."""
    return tuple(_ports)


def start_bootstrap(server_args: ServerArgs, pprank: Pprank) -> None:
    """Start SGLang's bootstrap server on each first prefill stage, and wait until it listens.

    SGLang's config must have been published.
    """
    if pprank.role != "prefill" or not pprank.leads_role:
        return
    start = need(import_module("sglang.srt.managers.disagg_service"), "start_disagg_service")
    service = start(**fill(start, {"server_args": server_args}))
    _services.append(service)
    port = int(need(server_args, "disaggregation_bootstrap_port"))
    thread = need(service, "thread")
    assert isinstance(thread, threading.Thread)
    _wait_until_up(port, thread)


def stop_bootstrap() -> None:
    """Stop the bootstrap server if it is on this rank, and wait until it has ended."""
    while _services:
        service = _services.pop()
        need(service, "close")()
        thread = need(service, "thread")
        assert isinstance(thread, threading.Thread)
        thread.join(_UP_S)
        if thread.is_alive():
            raise PprankError(f"SGLang's bootstrap server has not ended in {_UP_S:.0f} s")


@contextmanager
def private_ports(pprank: Pprank) -> Iterator[None]:
    """Restrict the ports that Mooncake opens in this block to loopback."""
    private = pprank.role != "pp" and os.environ["SGLANG_HOST_IP"] == LOOPBACK
    with listeners_on_loopback() if private else nullcontext():
        yield


def _wait_until_up(port: int, thread: threading.Thread) -> None:
    waiting = threading.Event()
    for _ in range(int(_UP_S / 0.01)):
        try:
            socket.create_connection((LOOPBACK, port), timeout=_UP_S).close()
            return
        except ConnectionRefusedError:
            if not thread.is_alive():
                break
            waiting.wait(0.01)
    raise PprankError(f"SGLang's bootstrap server does not listen on {LOOPBACK}:{port}")


def _import_mooncake() -> None:
    try:
        import_module("mooncake.engine")
    except ImportError as error:
        raise PprankError(f"{mooncake.advice(str(error))} {SEE_DOCTOR}") from error
