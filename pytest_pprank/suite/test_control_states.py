"""Control requests at every moment of other requests, sent twice at once, to pipelines and roles.

Each is answered once and handled on every stage. No other request is lost, all tokens are right,
and nothing is held afterwards. While SGLang is paused, no stage begins a forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank
    from pytest_pprank.sglang.compat.objects import Options
    from pytest_pprank.sglang.driver.control import Control

CHUNK = 64
KINDS: Mapping[str, Options] = {
    "flush_cache": {},
    "freeze_gc": {},
    "get_internal_state": {},
    "rpc": {"method": "note_call"},
    "slow_down": {"forward_sleep_time": None},
}
IDLE = ("idle", "just ended")
"""Moments at which the cache can be flushed."""

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)
waits_for_later_stages = pytest.mark.pprank(known_bug="remote-call-waits-for-later-stages")


def check(engine: Engine, *aborted: str) -> None:
    """Check that no request was lost, all tokens are right, and all memory was freed."""
    engine.drain()
    for rid, result in engine.results.items():
        assert end_of(result) == ("abort" if rid in aborted else "length"), rid
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def check_answer(name: str, control: Control, moment: str) -> None:
    """Check that a request has succeeded, or was refused where SGLang must refuse it."""
    for role, answer in control.answers.items():
        success = getattr(answer, "success", True)
        if name == "flush_cache":
            if (role, moment) == ("prefill", "decoding"):
                continue  # whether prefill still has something to do depends on its threads
            assert success == (moment in IDLE), f"{moment}, {role}: {answer}"
        else:
            assert success, f"{moment}, {role}: {answer}"


def end(engine: Engine) -> None:
    engine.generate([30], 2)


def idle(engine: Engine) -> None:
    engine.generate([30], 2)
    engine.step(4)


def amid_a_prompt(engine: Engine) -> None:
    engine.submit(20, 9)
    rid = engine.submit(4 * CHUNK, 3)
    engine.run_until(lambda: engine.chunks_done(rid) >= 2)


def amid_decoding(engine: Engine) -> None:
    rids = [engine.submit(20 + 7 * index, 9) for index in range(3)]
    engine.run_until(lambda: all(engine.results[rid].token_ids for rid in rids))


def amid_waiting(engine: Engine) -> None:
    """There are 8 request slots."""
    rids = [engine.submit(10 + index, 4) for index in range(11)]
    engine.run_until(lambda: engine.results[rids[0]].token_ids)


MOMENTS: Mapping[str, Callable[[Engine], None]] = {
    "idle": idle,
    "just ended": end,
    "amid a prompt": amid_a_prompt,
    "amid decoding": amid_decoding,
    "amid waiting": amid_waiting,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=waits_for_later_stages) if name == "rpc" else name for name in KINDS],
)
def test_twice_at_once(engine: Engine, name: str) -> None:
    calls: list[int] = []
    engine.scheduler.note_call = lambda: calls.append(len(calls))
    for moment, go_to in MOMENTS.items():
        go_to(engine)
        one, two = (engine.control(name, **KINDS[name]) for _ in range(2))
        engine.submit(25, 3)
        one.wait()
        two.wait()
        check_answer(name, one, moment)
        check_answer(name, two, moment)
        engine.drain()
    assert len(calls) == (2 * len(MOMENTS) if name == "rpc" else 0), "calls on this stage"
    check(engine)


@pytest.mark.pprank(prefill=2, decode=1)
class TestDisagg:
    @pytest.mark.parametrize(
        "role",
        [
            pytest.param("prefill", marks=waits_for_later_stages),
            # before 0.5.16 nobody waits for a stage that decode has not
            pytest.param("decode", marks=() if is_older_than("0.5.16") else waits_for_later_stages),
            pytest.param("both", marks=waits_for_later_stages),
        ],
    )
    def test_each_kind_at_each_moment(self, disagg: Disagg, role: str) -> None:
        """While a request is in its handshake, while its KV is sent, and while it is decoded."""
        disagg.scheduler.note_call = lambda: None
        roles = ("prefill", "decode") if role == "both" else (role,)
        slow = disagg.slow_transfer(stages=[0])
        alone = disagg.submit(30, to="decode")
        sent = disagg.submit(3 * CHUNK, 4)
        disagg.run_until_state(sent, "transferring")
        self._send_each(disagg, roles, "transferring")
        disagg.forward(alone, to="prefill")
        slow.release()
        disagg.run_until_state(sent, "decoding")
        self._send_each(disagg, roles, "decoding")
        check(disagg)

    def _send_each(self, disagg: Disagg, roles: tuple[str, ...], moment: str) -> None:
        sent = [
            (name, disagg.control(name, role=roles, **fields)) for name, fields in KINDS.items()
        ]
        for name, control in sent:
            control.wait()
            check_answer(name, control, moment)


PAUSES = ("in_place", "retract")
LOOPS = [
    pytest.param(True, marks=pytest.mark.sglang(disable_overlap_schedule=True), id="normal"),
    pytest.param(False, marks=pytest.mark.sglang(disable_overlap_schedule=False), id="overlap"),
]


@pytest.mark.pprank(pp=1)
@pytest.mark.parametrize("plain_loop", LOOPS)
class TestPause:
    """Only loops of one stage pause: see test_control for pipelines."""

    @pytest.mark.parametrize("mode", PAUSES)
    def test_nothing_runs_while_paused(self, engine: Engine, mode: str, plain_loop: bool) -> None:
        """The engine raises WorkedWhilePaused otherwise; tokens and memory are right at the end."""
        assert engine.scheduler.enable_overlap != plain_loop
        for moment in ("amid a prompt", "amid decoding"):
            MOMENTS[moment](engine)
            engine.control("pause_generation", mode=mode, wait=True)
            engine.step(3)
            made = {rid: len(result.token_ids) for rid, result in engine.results.items()}
            later = engine.submit(15, 3)
            engine.control("get_internal_state", wait=True)
            engine.control("pause_generation", mode=mode, wait=True)
            engine.step(3)
            for rid, count in made.items():
                assert len(engine.results[rid].token_ids) == count, f"{moment}: {rid} goes on"
            assert not engine.results[later].token_ids
            engine.control("continue_generation", wait=True)
            engine.drain()
        check(engine)

    def test_abort_while_paused(self, engine: Engine, plain_loop: bool) -> None:
        del plain_loop
        amid_decoding(engine)
        rid = next(iter(engine.results))
        engine.control("pause_generation", mode="in_place", wait=True)
        engine.step(2)
        waiting = engine.submit(20, 3)
        engine.step(2)
        engine.abort(waiting)
        engine.abort(rid)
        engine.step(3)
        engine.control("continue_generation", wait=True)
        check(engine, waiting, rid)


@pytest.mark.pprank(prefill=1, decode=1)
@pytest.mark.parametrize(
    "role",
    [
        pytest.param("prefill", marks=pytest.mark.sglang(disable_overlap_schedule=False)),
        pytest.param("decode", marks=pytest.mark.sglang(disable_overlap_schedule=False)),
        pytest.param("both", marks=pytest.mark.sglang(disable_overlap_schedule=True)),
    ],
)
def test_roles_that_are_paused(disagg: Disagg, role: str) -> None:
    """Requests are amid their prompt, decoded, and new (PR 23672)."""
    roles = ("prefill", "decode") if role == "both" else (role,)
    decoded = disagg.submit(20, 30)
    disagg.run_until_state(decoded, "decoding")
    long = disagg.submit(5 * CHUNK, 4)
    disagg.run_until(lambda: disagg.chunks_done(long) >= 2)
    disagg.control("pause_generation", mode="in_place", role=roles, wait=True)
    disagg.step(2)
    disagg.submit(15, 3)
    disagg.control("get_internal_state", wait=True)
    disagg.step(4)
    disagg.control("continue_generation", role=roles, wait=True)
    check(disagg)


@pytest.fixture
def other_weights(pprank: Pprank) -> Path:
    """Write a model of the same shape as the default one, with other weights."""
    from pytest_pprank.sglang.model.tiny import write_tiny_model
    from pytest_pprank.sglang.static.release import TINY_LAYERS

    if pprank.device.startswith("cuda"):
        pytest.skip("the tiny model for CUDA has another shape")
    layers = max(TINY_LAYERS, pprank.num_stages)
    return write_tiny_model(pprank.workdir / "other", layers=layers, seed=7)


def test_other_weights(engine: Engine, other_weights: Path) -> None:
    """Every stage has the new weights, and forgets the KV of the old ones."""
    own = engine.scheduler.server_args.model_path
    prompt = [*range(1000, 1000 + 2 * CHUNK)]
    (before,) = engine.generate([prompt], 4)
    engine.step(4)
    assert read_weights(engine, str(other_weights))
    (after,) = engine.generate([prompt], 4)
    engine.step(4)
    assert read_weights(engine, own)
    (again,) = engine.generate([prompt], 4)
    assert after.cached_tokens == again.cached_tokens == 0
    assert_tokens_equal_reference(
        [before, replace(after, model_path=str(other_weights)), replace(again, model_path=own)]
    )
    assert after.token_ids != before.token_ids
    assert_kv_balanced(engine.scheduler)


def read_weights(engine: Engine, path: str) -> bool:
    """Read weights from disk, in all stages; return whether it has succeeded."""
    control = engine.control(
        "update_weights_from_disk", model_path=path, load_format="auto", wait=True
    )
    return bool(control.answer.success)


@pytest.mark.skipif(is_older_than("0.5.20"), reason="weights cannot be read without a flush")
def test_weights_are_read_while_requests_run(engine: Engine) -> None:
    """The same weights: no token changes, and the KV stays."""
    for go_to in (amid_a_prompt, amid_decoding, amid_waiting):
        go_to(engine)
        read = engine.control(
            "update_weights_from_disk",
            model_path=engine.scheduler.server_args.model_path,
            load_format="auto",
            flush_cache=False,
            wait=True,
        )
        assert read.answer.success, read.answer
        engine.drain()
    check(engine)


@pytest.mark.pprank(known_bug="weights-of-later-stages-have-no-name")
def test_weights_by_name(engine: Engine) -> None:
    """Weights of the first and of the last stage."""
    idle(engine)
    for name in ("model.layers.0.input_layernorm.weight", "model.norm.weight"):
        found = engine.control("get_weights_by_name", name=name, wait=True).answer
        assert found.parameter, f"no values of {name}"
    check(engine)


def test_memory_that_is_released_and_resumed(engine: Engine) -> None:
    """Between the two, nothing is asked for; then weights and cache are as if new."""
    idle(engine)
    engine.control("release_memory_occupation", tags=["kv_cache"], wait=True)
    engine.step(2)
    engine.control("resume_memory_occupation", tags=["kv_cache"], wait=True)
    amid_decoding(engine)
    check(engine)
