"""Starts the real Scheduler of this rank's pipeline stage.

There are three ways, chosen by what the installed SGLang has: ``publish(..., ranks=)`` and a short
constructor (from 0.5.21), ``publish(..., role=)`` and a long one (0.5.17 to 0.5.20), or only the
long one (before).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.devices.unstarted_cuda import check_answers
from pytest_pprank.errors import PprankError, UsageError
from pytest_pprank.sglang.batches.cleared import watch_batches
from pytest_pprank.sglang.compat.profiler import SIZING, strands_peers
from pytest_pprank.sglang.compat.seams import fill, missing, need, takes
from pytest_pprank.sglang.compat.start import (
    allow_deterministic_sampling,
    name_instance,
    publisher,
    resolve_and_check,
    thread_binding,
)
from pytest_pprank.sglang.driver.disagg_start import prepare_disagg, private_ports, start_bootstrap
from pytest_pprank.sglang.driver.tokenizer_side import TokenizerSide
from pytest_pprank.sglang.model.grammar import start_grammars
from pytest_pprank.sglang.platform.collectives import register as register_collectives
from pytest_pprank.sglang.platform.dp_attention import run_without_gpu
from pytest_pprank.sglang.platform.experts import skip_other_experts
from pytest_pprank.sglang.platform.preload import no_progress_bars
from pytest_pprank.sglang.platform.seeds import use_own_hash
from pytest_pprank.sglang.stage.connect import connect_stages
from pytest_pprank.sglang.stage.profiler import ProfilerRun, watch_profiler
from pytest_pprank.sglang.stage.stage import Started, this_stage
from pytest_pprank.sglang.static.load_snapshot import remove_load_snapshots

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import PortArgs, Scheduler, ServerArgs

_MAX_SOCKET_PATH = 100
"""Limit in bytes for the path of a unix socket: Linux allows 108, and zmq may add some."""


def start_scheduler(args: Mapping[str, object], pprank: Pprank) -> Scheduler:
    """Return this stage's real Scheduler, ready to run. A meeting of all ranks of the pipeline.

    `args`: complete server args (see `arguments`). Sockets and temporary files are in
    ``pprank.workdir``. The stages of a pipeline meet at a store that its first stage serves on
    loopback. Raises what SGLang raises if it refuses the args or does not start, and PprankError if
    its profiler fails in a way that would leave the other stages waiting.
    """
    from pytest_pprank.rank.store import serve_store_of_role

    server_args_module = import_module("sglang.srt.server_args")
    host, port = serve_store_of_role(pprank)
    of_this_group = prepare_disagg(pprank)
    _spread_threads(pprank)
    _prepare_device(args, pprank)
    server_args = need(server_args_module, "ServerArgs")(
        **{**args, **of_this_group, "dist_init_addr": f"{host}:{port}"}
    )
    resolve_and_check(server_args)
    ports = _port_args(need(server_args_module, "PortArgs"), server_args, pprank)
    side = TokenizerSide(ports) if pprank.takes_requests else None
    try:
        # A user's filterwarnings = error is for their tests, not for SGLang's start.
        with (
            watch_profiler() as run,
            private_ports(pprank),
            no_progress_bars(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            scheduler = _construct(server_args, ports, pprank)
    finally:
        # SGLang maps the file for a tokenizer process and never removes it; the mapping stays.
        remove_load_snapshots(instance_id(pprank))
    if strands_peers() and run.problems():
        found = "\n".join(run.problems()).replace("\n", "\n  ")
        raise PprankError(
            "SGLang's dynamic-chunk profiler failed on this stage while the Scheduler started; the "
            f"other stages wait for its samples for ever:\n  {found}"
        )
    _settle_device(scheduler, pprank)
    start_grammars(scheduler, args.get("grammar_backend"))
    watch_batches()
    this_stage().start(scheduler, _snapshot(scheduler, side, run))
    return scheduler


def _prepare_device(args: Mapping[str, object], pprank: Pprank) -> None:
    if pprank.device.startswith("cuda"):
        check_answers(device_index(pprank))
        return
    register_collectives(pprank.device)
    if pprank.ep_size > 1:
        skip_other_experts()
    if pprank.dp_size > 1:
        run_without_gpu(pprank.device)
    if args.get("enable_deterministic_inference"):
        allow_deterministic_sampling(args["attention_backend"])
        use_own_hash()


def _settle_device(scheduler: Scheduler, pprank: Pprank) -> None:
    if pprank.device.startswith("cuda"):
        connect_stages(scheduler, pprank.device)
    if pprank.device != "cpu":
        # the start wrote memory that other streams will read without waiting
        import_module("torch").get_device_module(pprank.device).synchronize()


def instance_id(pprank: Pprank) -> str:
    """Return SGLang's name of this Scheduler's pipeline, unique on the host.

    It begins with the run folder's name, so that the controller can find the files of killed ranks.
    """
    return f"{pprank.workdir.parent.name}-{pprank.workdir.name}-{_file_name(pprank)}"


def _file_name(pprank: Pprank) -> str:
    """Return the name of this rank's instance as a part of names of files."""
    return pprank.instance.replace(" ", "-")


def device_index(pprank: Pprank) -> int:
    """Return SGLang's gpu_id of this rank: the device's number, or on CPU the place in the role."""
    kind, _, index = pprank.device.partition(":")
    return int(index or 0) if kind != "cpu" else _place(pprank)


def _place(pprank: Pprank) -> int:
    """Return SGLang's number of this rank in its world."""
    return pprank.rank - pprank.role_ranks.start


def _snapshot(scheduler: Scheduler, side: TokenizerSide | None, run: ProfilerRun) -> Started:
    attributes = vars(scheduler)
    kept = {
        name: value
        for name, value in attributes.items()
        if name in SIZING or value is None or isinstance(value, (int, float, str, Enum))
    }
    return Started(side, run, kept, frozenset(attributes))


def _construct(server_args: ServerArgs, ports: PortArgs, pprank: Pprank) -> Scheduler:
    known = {
        "server_args": server_args,
        "port_args": ports,
        "gpu_id": device_index(pprank),
        "pp_rank": pprank.stage,
        "dp_rank": _dp_rank(pprank),
        "tp_rank": pprank.tp_rank,
        "moe_ep_rank": pprank.ep_rank,
        **dict.fromkeys(("attn_cp_rank", "moe_dp_rank"), 0),
    }
    scheduler_class = need(import_module("sglang.srt.managers.scheduler"), "Scheduler")
    _publish(server_args, pprank)
    start_bootstrap(server_args, pprank)
    scheduler: Scheduler = scheduler_class(**fill(scheduler_class.__init__, known))
    return scheduler


def _dp_rank(pprank: Pprank) -> int | None:
    """Return SGLang's dp_rank of this rank: None if it has no DP ranks."""
    return pprank.dp_rank if pprank.dp_size > 1 else None


def _publish(server_args: ServerArgs, pprank: Pprank) -> None:
    """Install the process-wide config, if this SGLang has one."""
    if (found := publisher()) is None:
        return
    context, publish = found
    known: dict[str, object] = {"server_args": server_args, "role": "scheduler"}
    if takes(publish, "ranks"):
        world_rank = need(context, "spawn_world_rank")
        known["ranks"] = need(context, "SpawnRanks")(
            world_rank=world_rank(server_args, tp_rank=pprank.tp_rank, pp_rank=pprank.stage),
            dp_rank=_dp_rank(pprank),
            gpu_id=device_index(pprank),
        )
    publish(**fill(publish, known))


def _port_args(
    port_args_class: type[PortArgs], server_args: ServerArgs, pprank: Pprank
) -> PortArgs:
    """Return PortArgs with sockets in the workdir: the same names on each rank of a DP rank."""
    # with DP ranks SGLang would also take TCP ports for all sockets, unless the caller has them
    of_dp = {"dp_rank": pprank.dp_rank, "worker_ports": [0] * pprank.dp_size}
    owner = _file_name(pprank) + (f"-dp{pprank.dp_rank}" if pprank.dp_size > 1 else "")
    init_new = need(port_args_class, "init_new")
    ports: PortArgs = init_new(server_args, **(of_dp if pprank.dp_size > 1 else {}))
    names = [field.name for field in fields(ports) if field.name.endswith("_ipc_name")]
    if "scheduler_input_ipc_name" not in names:
        raise missing("PortArgs.scheduler_input_ipc_name")
    for name in names:
        if getattr(ports, name) is None:
            continue
        path = pprank.workdir / f"{owner}-{name.removesuffix('_ipc_name')}"
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise UsageError(
                f"{path}: too long for a unix socket ({_MAX_SOCKET_PATH} bytes); "
                "set TMPDIR to a shorter folder"
            )
        setattr(ports, name, f"ipc://{path}")
    name_instance(ports, instance_id(pprank))
    return ports


def _spread_threads(pprank: Pprank) -> None:
    """Give each rank one core; otherwise SGLang's CPU path refuses more ranks than NUMA nodes."""
    cores = sorted(os.sched_getaffinity(0))
    entries = [str(cores[place % len(cores)]) for place in range(len(pprank.role_ranks))]
    bind = thread_binding(entries, pprank.stage, pprank.tp_size)
    os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", bind)
