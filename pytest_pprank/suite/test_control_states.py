"""Control requests at every moment of other requests, sent twice at once, to pipelines and roles.

Each is answered once and handled on every stage. No other request is lost, all tokens are right,
and nothing is held afterwards. While SGLang is paused, no stage begins a forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.controls import EVER, OFF, SOMETIMES, handled_here
from pytest_pprank.suite.moments import CHUNK, IDLE, MOMENTS, amid_decoding, check

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine
    from pytest_pprank.sglang.compat.objects import Options
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
        for name in SOMETIMES
    ],
)
def test_twice_at_once(engine: Engine, name: str) -> None:
    calls: list[int] = []
    engine.scheduler.note_call = lambda: calls.append(len(calls))
    for moment, go_to in MOMENTS.items():
        go_to(engine)
        one, two = (engine.control(name, **SOMETIMES[name]) for _ in range(2))
        engine.submit(25, 3)
        one.wait()
        two.wait()
        check_answer(name, one, moment)
        check_answer(name, two, moment)
        engine.drain()
    assert len(calls) == (2 * len(MOMENTS) if name == "rpc" else 0), "calls on this stage"
    check(engine)


@pytest.mark.pprank(sanitize="-logs")  # SGLang logs most refusals
def test_all_others_twice_at_once(engine: Engine) -> None:
    """Those that succeed at any moment, and those for what is off, which all stages refuse."""
    for moment, go_to in MOMENTS.items():
        go_to(engine)
        sent = [
            (engine.control(name, **fields), table is EVER)
            for table in (EVER, OFF)
            for name, fields in handled_here(engine, table).items()
            for _ in range(2)
        ]
        engine.submit(25, 3)
        for control, good in sent:
            control.wait()
            check_success(control, good, moment)
        engine.drain()
    check(engine)


def check_success(control: Control, good: bool, moment: str) -> None:
    """Check that a request has succeeded on all roles, or was refused by all."""
    for role, answer in control.answers.items():
        assert getattr(answer, "success", good) is good, f"{moment}: {control}, {role}: {answer}"


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
            for table in (EVER, SOMETIMES)
            for name, fields in handled_here(disagg, table).items()
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
            check_success(control, False, "decoding")
        check(disagg)


PAUSES = ("in_place", "retract")
LOOPS = [
    pytest.param(True, marks=pytest.mark.sglang(disable_overlap_schedule=True), id="normal"),
    pytest.param(
        False,
        marks=[
            pytest.mark.sglang(disable_overlap_schedule=False),
            pytest.mark.pprank(known_bug="overlap-writes-what-a-forward-reads"),
        ],
        id="overlap",
    ),
]


each_loop = pytest.mark.parametrize("plain_loop", LOOPS)


@pytest.mark.pprank(pp=1)
class TestPause:
    """Only loops of one stage pause: see test_control for pipelines."""

    @each_loop
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

    def test_scores_of_a_prompt_that_is_paused(self, engine: Engine) -> None:
        """Its chunks are computed again from the first one on, and so are their logprobs."""
        scores: Options = {"prompt_logprobs": True, "top_logprobs": 2}
        rid = engine.submit(4 * CHUNK, 3, **scores)
        engine.run_until(lambda: engine.chunks_done(rid) >= 2)
        engine.control("pause_generation", mode="retract", wait=True)
        engine.step(3)
        engine.submit(20, 3, **scores)
        engine.control("continue_generation", wait=True)
        check(engine)

    @each_loop
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
