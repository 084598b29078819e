"""Entry point of a rank: from a process started by torch elastic to a pytest session."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_pprank._pytest_compat import speed_up_log_capture
from pytest_pprank.errors import PprankError
from pytest_pprank.host.link import Link
from pytest_pprank.host.process import prepare_process
from pytest_pprank.oplog.record.ledger import start_ledger, update_device, update_ledger
from pytest_pprank.protocol.bootstrap import RankBootstrap
from pytest_pprank.protocol.channel import connect
from pytest_pprank.protocol.messages import Hello, RankBroken
from pytest_pprank.rank.context import set_current_rank
from pytest_pprank.rank.handle import Placement, Pprank
from pytest_pprank.sglang import PLUMBING
from pytest_pprank.sglang.reverts.apply import apply
from pytest_pprank.trace.record.trace import start_trace


def rank_main(pickled: bytes) -> int:
    """Run one rank until the controller sends Shutdown; return pytest's exit status."""
    bootstrap: RankBootstrap = pickle.loads(pickled)
    rank = int(os.environ["RANK"])
    prepare_process(bootstrap, rank)
    hello = Hello(rank, os.getpid(), bootstrap.group)
    channel, watch = (
        connect(bootstrap.address, bootstrap.key, replace(hello, watch=which))
        for which in (False, True)
    )
    on_cuda = bootstrap.device == "cuda"
    link = Link(channel, watch, update_ledger, update_device if on_cuda else None)
    try:
        pprank = Pprank(_placement(bootstrap, rank), link)
        set_current_rank(pprank)
        _prepare_libraries(bootstrap, pprank)
        return _run_session(bootstrap, pprank, link)
    except Exception as error:
        expected = isinstance(error, PprankError)
        link.send(RankBroken(str(error) if expected else traceback.format_exc()))
        raise


def _placement(bootstrap: RankBootstrap, rank: int) -> Placement:
    on_cuda = bootstrap.device == "cuda"
    return Placement(
        rank=rank,
        sizes=bootstrap.sizes,
        device=f"cuda:{rank % bootstrap.gpus}" if on_cuda else bootstrap.device,
        workdir=Path(bootstrap.workdir),
    )


def _prepare_libraries(bootstrap: RankBootstrap, pprank: Pprank) -> None:
    from pytest_pprank.host.torch_logs import join_torch_loggers
    from pytest_pprank.rank.store import point_environment_at, serve_store

    join_torch_loggers()
    point_environment_at(serve_store(pprank))
    role = (pprank.role_ranks.start, len(pprank.role_ranks))
    start_ledger(pprank.workdir, pprank.rank, plumbing=PLUMBING, role=role)
    if bootstrap.trace:
        sglang = bootstrap.server_args is not None
        start_trace(pprank.workdir, pprank.rank, sglang=sglang)
    if bootstrap.server_args is None and "sglang" not in sys.modules:
        return  # neither this group's tests nor their files use SGLang
    from pytest_pprank.sglang.compat.accelerator import let_downloads_use_sim
    from pytest_pprank.sglang.platform.preload import import_sglang

    import_sglang(pprank.device)
    for revert in bootstrap.reverts:
        apply(revert)
    let_downloads_use_sim(bootstrap.device)


def _run_session(bootstrap: RankBootstrap, pprank: Pprank, link: Link) -> int:
    from pytest_pprank.host.session import RankSession, become_worker

    # inside the controller's basetemp, so that pytest keeps and prunes it like any other
    basetemp = str(Path(bootstrap.basetemp) / f"{bootstrap.group}-pp{pprank.rank}")
    options = {**pickle.loads(bootstrap.options), "basetemp": basetemp}
    config = pytest.Config.fromdictargs(options, list(bootstrap.arguments))
    become_worker(config, bootstrap.workerinputs[pprank.rank])
    session = RankSession(config, bootstrap, pprank, link)
    config.pluginmanager.register(session, "pprank-rank")
    if bootstrap.trace:
        from pytest_pprank.host.phases import PhaseTrace

        config.pluginmanager.register(PhaseTrace(), "pprank-trace")
    speed_up_log_capture()
    status = int(config.hook.pytest_cmdline_main(config=config))
    if not link.shutting_down:
        why = f"its pytest session ended early, with exit status {status}\n{session.broken}"
        link.send(RankBroken(why.rstrip()))
    return status
