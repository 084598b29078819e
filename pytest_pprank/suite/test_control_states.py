"""Control requests at every moment of other requests, sent twice at once, to pipelines and roles.

Each is answered once and handled on every stage. No other request is lost, all tokens are right,
and nothing is held afterwards. While SGLang is paused, no stage begins a forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.controls import HARMLESS, OFF, handled_here
from pytest_pprank.suite.moments import CHUNK, IDLE, MOMENTS, amid_decoding, check

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine
    from pytest_pprank.sglang.driver.control import Control

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)
waits_for_later_stages = pytest.mark.pprank(known_bug="remote-call-waits-for-later-stages")


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=waits_for_later_stages) if name == "rpc" else name
        for name in HARMLESS
    ],
)
def test_twice_at_once(engine: Engine, name: str) -> None:
    if name not in handled_here(engine, HARMLESS):
        pytest.skip(f"this SGLang has no control request {name}")
    calls: list[int] = []
    engine.scheduler.note_call = lambda: calls.append(len(calls))
    for moment, go_to in MOMENTS.items():
        go_to(engine)
        one, two = (engine.control(name, **HARMLESS[name]) for _ in range(2))
        engine.submit(25, 3)
        one.wait()
        two.wait()
        check_answer(name, one, moment)
        check_answer(name, two, moment)
        engine.drain()
    assert len(calls) == (2 * len(MOMENTS) if name == "rpc" else 0), "calls on this stage"
    check(engine)


@pytest.mark.pprank(sanitize="-logs")  # SGLang logs most refusals
def test_requests_for_what_is_off(engine: Engine) -> None:
    """All kinds are sent together at each moment, and each is refused by all stages."""
    for moment, go_to in MOMENTS.items():
        go_to(engine)
        off = handled_here(engine, OFF)
        sent = [engine.control(name, **fields) for name, fields in off.items()]
        engine.submit(25, 3)
        for control in sent:
            answer = control.wait()
            assert answer.success is False, f"{moment}: {control}: {answer}"
        engine.drain()
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
            (name, disagg.control(name, role=roles, **fields))
            for name, fields in handled_here(disagg, HARMLESS).items()
        ]
        for name, control in sent:
            control.wait()
            check_answer(name, control, moment)

    @pytest.mark.pprank(sanitize="-logs")
    def test_requests_for_what_is_off(self, disagg: Disagg) -> None:
        decoded = disagg.submit(30, 9)
        disagg.run_until_state(decoded, "decoding")
        off = handled_here(disagg, OFF)
        for control in [disagg.control(name, **fields) for name, fields in off.items()]:
            control.wait()
            for role, answer in control.answers.items():
                assert answer.success is False, f"{role}: {control}: {answer}"
        check(disagg)


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
