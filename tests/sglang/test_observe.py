"""The recorder at SGLang's hook points: what it shows of a real run on both stages; its cleanup."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import UsageError, assert_ranks_agree

if TYPE_CHECKING:
    from pytest_pprank import Engine, Observe, Pprank

WRAPPED = (
    ("managers.schedule_batch", "ScheduleBatch", "prepare_for_extend"),
    ("model_executor.forward_batch_info", "ForwardBatch", "init_new"),
    ("model_executor.model_runner", "ModelRunner", "forward"),
    ("mem_cache.allocator", "TokenToKVPoolAllocator", "alloc"),
    ("mem_cache.memory_pool", "ReqToTokenPool", "free"),
    ("managers.scheduler", "Scheduler", "process_batch_result"),
)


def _methods() -> list[Any]:
    from importlib import import_module

    owners = [
        (getattr(import_module(f"sglang.srt.{m}"), owner), name) for m, owner, name in WRAPPED
    ]
    return [vars(owner)[name] for owner, name in owners]


def _channels(calls: list[Any]) -> dict[tuple[str, int], list[int]]:
    channels: dict[tuple[str, int], list[int]] = {}
    for call in calls:
        channels.setdefault((call.facts.group, call.facts.peer), []).append(call.facts.nbytes)
    return channels


@pytest.fixture
def untouched() -> Iterator[None]:
    """A fixture that is set up before `observe`, and torn down after it."""
    from pytest_pprank.sglang.events.hook_points import hook_points

    before, listened = _methods(), hook_points.installed
    yield
    assert [a is b for a, b in zip(_methods(), before, strict=True)] == [True] * len(before)
    assert hook_points.installed == listened


@pytest.mark.usefixtures("untouched")
def test_one_request_passes_every_seam_in_order(
    observe: Observe, engine: Engine, pprank: Pprank
) -> None:
    engine.generate([20], max_new_tokens=2)
    between = {"p2p_send", "p2p_recv", "schedule", "lock", "unlock"}
    names = [call.seam for call in observe.calls() if call.seam not in between]
    assert names == [
        "slot_alloc", "kv_alloc", "prepare_for_extend", "init_new", "forward", "batch_result",
        "kv_alloc", "prepare_for_decode", "init_new", "forward", "batch_result",
        *["kv_free"] * names.count("kv_free"), "slot_free",
    ]  # fmt: skip
    assert [call.number for call in observe.calls()] == [*range(len(observe.calls()))]
    (extend,), (decode,) = observe.calls("prepare_for_extend"), observe.calls("prepare_for_decode")
    assert (extend.facts.rids, extend.facts.mode) == (("req-000",), "extend")
    assert (extend.facts.extends, extend.facts.tokens) == (((0, 20),), 20)
    assert extend.facts.tensors["prefill_input_ids_cpu"] == "int64[20]"
    assert (decode.facts.mode, decode.facts.tokens) == ("decode", 1)
    taken = observe.calls("kv_alloc")
    assert [call.facts.tokens for call in taken] == [20, 1]
    assert taken[0].facts.kv == extend.facts.kv
    assert (extend.stage, extend.iteration) == (pprank.stage, 0)
    assert extend.site.file.endswith("sglang/srt/managers/scheduler.py")
    assert any(site.function == "event_loop_pp" for site in taken[0].stack + extend.stack)
    assert extend.thread == threading.current_thread().name
    forwards = observe.calls("forward")
    assert [call.facts.tensors["input_ids"] for call in forwards] == ["int64[20]", "int64[1]"]
    assert [call.facts.extends for call in forwards] == [((0, 20),), ()]
    assert_ranks_agree([(call.facts.rids, call.facts.extends) for call in forwards])
    assert "kv_alloc (stage" in str(taken[0])


def test_messages_between_stages(observe: Observe, engine: Engine, pprank: Pprank) -> None:
    engine.generate([20], max_new_tokens=2)
    engine.leave()
    sent, received = observe.calls("p2p_send"), observe.calls("p2p_recv")
    both = pprank.gather([_channels(sent), _channels(received)])
    assert len(both[0][0]) == 2, "requests and proxy tensors go through two groups"
    for rank, peer in ((0, 1), (1, 0)):
        out = {group: sizes for (group, to), sizes in both[rank][0].items() if to == peer}
        assert out == {group: sizes for (group, of), sizes in both[peer][1].items() if of == rank}
    assert any("_pp_send" in site.function for call in sent for site in call.stack)


def test_callbacks_get_the_objects(observe: Observe, make_schedule_batch: Any) -> None:
    seen: list[Any] = []
    observe.on("prepare_for_extend", lambda call, batch: seen.append((call, batch)))
    observe.on("slot_alloc", lambda call, pool: seen.append((call, pool)))
    batch = make_schedule_batch([5, 7])
    slots, extend = seen
    assert slots[0].facts.rids == extend[0].facts.rids == ("req-0", "req-1")
    assert extend[1] is batch
    assert extend[0].iteration is None
    assert slots[1] is batch.req_to_token_pool
    observe.clear()
    assert observe.calls() == []


def test_what_a_callback_raises_is_not_swallowed(
    observe: Observe, make_schedule_batch: Any, scheduler: Any
) -> None:
    from pytest_pprank.sglang.stage.idle import reset_scheduler

    observe.on("prepare_for_extend", lambda *_: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        make_schedule_batch([5])
    reset_scheduler(scheduler)  # else the plugin would warn of what that batch still owns


@pytest.mark.parametrize("ask", ["calls", "on"])
def test_wrong_name(observe: Observe, ask: str) -> None:
    arguments = ("prepare_for_extned",) if ask == "calls" else ("prepare_for_extned", print)
    with pytest.raises(UsageError, match=r"'prepare_for_extned' \(did you mean 'prepare_for_ext"):
        getattr(observe, ask)(*arguments)
    assert "kv_alloc" in observe.seams


@pytest.mark.usefixtures("untouched")
def test_method_that_somebody_else_wraps_meanwhile(scheduler: Any) -> None:
    """Our wrapper stays below theirs, without effect, and is removed when theirs is gone."""
    from pytest_pprank.sglang.events import hooks  # noqa: F401
    from pytest_pprank.sglang.events.hook_points import hook_points

    allocator = type(scheduler.token_to_kv_pool_allocator)
    original = vars(allocator)["alloc"]
    heard: list[Any] = []
    end = hook_points.listen("kv_alloc", heard.append)
    with pytest.MonkeyPatch.context() as patch:
        ours = vars(allocator)["alloc"]
        patch.setattr(allocator, "alloc", lambda self, size: ours(self, size))
        end()
        scheduler.token_to_kv_pool_allocator.free(scheduler.token_to_kv_pool_allocator.alloc(2))
        assert heard == []
    assert vars(allocator)["alloc"] is ours
    hook_points.listen("kv_alloc", heard.append)()
    assert vars(allocator)["alloc"] is original
