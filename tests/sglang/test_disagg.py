"""Prefill and decode in one worker group: worlds, ports, views, faults, and SGLang's own leaks."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import EngineStalled, UsageError, assert_kv_balanced, assert_ranks_agree

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank

pytestmark = [pytest.mark.pprank(prefill=2, decode=1)]


def test_each_role_has_a_world_of_its_own(disagg: Disagg, pprank: Pprank) -> None:
    import torch.distributed as dist

    assert (dist.get_world_size(), dist.get_rank()) == (pprank.num_stages, pprank.stage)
    seats = [("prefill", 0, 2, 0), ("prefill", 1, 2, 1), ("decode", 0, 1, 2)]
    seat = (pprank.role, pprank.stage, pprank.num_stages, pprank.rank)
    assert pprank.gather(seat) == seats
    args = disagg.scheduler.server_args
    assert args.disaggregation_mode == pprank.role
    assert len(set(pprank.gather(args.dist_init_addr))) == 2
    assert_ranks_agree(args.disaggregation_bootstrap_port)


def _listening() -> list[socket.socket]:
    """Return copies of all sockets of this process that listen on the network."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        if not os.path.lexists(entry) or not os.readlink(entry).startswith("socket:"):
            continue
        copy = socket.socket(fileno=os.dup(int(entry.name)))
        is_listener = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if is_listener and copy.family in (socket.AF_INET, socket.AF_INET6):
            found.append(copy)
        else:
            copy.close()
    return found


def test_ports_are_private(disagg: Disagg) -> None:
    """Mooncake listens on all interfaces; its sockets are bound to the loopback device."""
    disagg.generate([5], 2)
    listening = _listening()
    tied = []
    for listener in listening:
        device = listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        tied.append(device.rstrip(b"\0") == b"lo")
        assert tied[-1] or listener.getsockname()[0] == "127.0.0.1", listener
        listener.close()
    assert any(tied)


def test_results_of_both_roles(disagg: Disagg) -> None:
    (result,) = disagg.generate([300], 4)
    assert len(result.token_ids) == 4
    assert result.extends == [(0, 256), (256, 300)]
    assert disagg.prefill.results[result.rid].token_ids == result.token_ids[:1]
    assert disagg.state(result.rid) == {"prefill": ("done", "done"), "decode": ("done",)}
    assert_ranks_agree((result.token_ids, disagg.stages))


def test_views_of_a_transfer_that_is_held(disagg: Disagg, pprank: Pprank) -> None:
    slow = disagg.slow_transfer(stages=[0, 1])
    rid = disagg.submit(30, 4)
    assert disagg.state(rid) == {"prefill": (), "decode": ()}  # before the first step
    disagg.run_until(
        lambda: (
            set(sum(disagg.state(rid).values(), ())) == {"transferring"}
            and (slow.hits or pprank.role == "decode")  # its thread may start later
        ),
        where="all",
    )
    for view in disagg.stages:
        queue = "transfer" if view.role == "decode" else "inflight"
        assert view.queues[queue] == (rid,)
        assert (view.kv_tokens, view.request_slots, view.metadata_slots) == (30, 1, 1)
        assert len(view.rooms) == 1
        assert view.rids == {rid}
    with pytest.raises(AssertionError, match="metadata slots: 1 of") as error:
        assert_kv_balanced(disagg.scheduler)
    assert f"requests ({rid})" in str(error.value)
    taken = rf"metadata slot \d+ is held by {rid}, taken at (decode|prefill)\.py:\d+ in "
    assert re.search(taken, str(error.value))
    assert f"of {rid} " in str(error.value).partition("rooms that the KV manager still knows")[2]
    slow.release()
    disagg.drain()
    assert pprank.role == "decode" or slow.hits
    assert_kv_balanced(disagg.scheduler)


def test_role_that_stands_still(disagg: Disagg, pprank: Pprank) -> None:
    rid, other = disagg.submit(30, 4), disagg.submit(40, 20)
    disagg.run_until(lambda: disagg.results[other].token_ids)
    before = pprank.gather(disagg.iterations)
    disagg.stop("prefill")
    with pytest.raises(
        UsageError, match=r"disagg.drain\(\): prefill stands still; call disagg.res"
    ):
        disagg.drain()
    with pytest.raises(UsageError, match=r"disagg.stop: prefill stands still already"):
        disagg.stop("prefill")
    disagg.step(6)
    assert [
        now - then for now, then in zip(pprank.gather(disagg.iterations), before, strict=True)
    ] == [0, 0, 6]
    with pytest.raises(EngineStalled, match=r"prefill stage 1, \d+ iterations: stands still; "):
        disagg.run_until(lambda: False, max_iterations=2)
    disagg.resume("prefill")
    disagg.drain()
    assert len(disagg.results[rid].token_ids) == 4
    disagg.stop("prefill")
    with pytest.raises(UsageError, match=r"disagg.leave\(\): prefill stands still; call"):
        disagg.leave()
    disagg.resume("prefill")
    disagg.abort(disagg.submit(50))  # arrives in the iteration in which prefill is now
    disagg.stop("decode")  # until the end of the test
    disagg.step(40)


@pytest.mark.pprank(sanitize="-logs")
def test_role_that_is_killed(disagg: Disagg, pprank: Pprank) -> None:
    rid, other = disagg.submit(30, 4), disagg.submit(40, 20)
    disagg.run_until(lambda: disagg.results[other].token_ids)
    flush = disagg.control("flush_cache")
    disagg.stop("prefill")
    disagg.kill("prefill")
    assert pprank.role == "decode"
    assert disagg.prefill.stages == ()
    assert [view.role for view in disagg.stages] == ["decode"]
    for call, words in (
        (lambda: disagg.kill("decode"), "disagg.kill: prefill is dead; one must live"),
        (lambda: disagg.kill("prefill"), "disagg.kill: prefill is dead"),
        (lambda: disagg.resume("prefill"), "disagg.resume: prefill is dead"),
        (lambda: disagg.control("flush_cache", role="prefill"), "disagg.control: prefill is dead"),
        (disagg.bootstrap.stop, "bootstrap.stop: prefill is dead, the server with it"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
    disagg.drain()
    assert len(disagg.results[other].token_ids) == 20
    assert not flush.done
    assert disagg.control("get_internal_state", wait=True) is not None
    assert disagg.state(other) == {"prefill": (), "decode": ("done",)}
    assert rid in disagg.results


def test_transfer_is_held_for_some_iterations(disagg: Disagg) -> None:
    disagg.slow_transfer(stages=[1], iterations=12)
    (result,) = disagg.generate([30], 4)
    assert (result.finish_reason or {})["type"] == "length"
    assert disagg.iterations > 12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: d.submit(3, to="both"), "role 'both'"),
        (lambda d: d.abort("nobody"), "'nobody' was not submitted"),
        (lambda d: d.slow_transfer(stages=[2]), "stages .2. of prefill; there are 0 to 1"),
        (lambda d: d.late_poll(stages=[]), "stages .. of decode"),
        (lambda d: d.run_until_state("x", "flying"), "allowed: bootstrapping, waiting"),
        (lambda d: d.stop("both"), "disagg.stop: role 'both'; allowed: 'prefill', 'decode'"),
        (lambda d: d.stop(["decode"]), "disagg.stop: role .'decode'.; allowed"),
        (lambda d: d.kill("all"), "disagg.kill: role 'all'; allowed: 'prefill', 'decode'"),
        (lambda d: d.resume("decode"), "disagg.resume: decode goes on"),
        (lambda d: d.generate([]), "disagg.generate: prompts must be a list"),
    ],
)
def test_wrong_calls(disagg: Disagg, call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(disagg)
