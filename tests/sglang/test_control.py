"""engine.control: which requests it accepts, and missing or surplus answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import UsageError, assert_ranks_agree
from pytest_pprank.sglang.driver.control import AnsweredTwice
from pytest_pprank.sglang.driver.series import StagesDiffer
from pytest_pprank.sglang.driver.until import EngineStalled

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank


def test_answer_is_the_same_on_all_ranks(engine: Engine) -> None:
    flush = engine.control("flush_cache")
    assert (flush.answer, flush.done, engine.idle) == (None, False, False)
    engine.drain()
    assert flush.done
    assert flush.wait() is flush.answer
    assert_ranks_agree([flush.answer.success, *flush.told["pp"]])


def test_it_takes_one_iteration_more_for_each_stage(engine: Engine, pprank: Pprank) -> None:
    flush = engine.control("flush_cache")
    engine.step()
    assert flush.handled["pp"] == {0}
    assert flush.answer.success  # the first stage's answer only
    assert flush.done == (pprank.num_stages == 1)
    engine.step(2 * pprank.num_stages - 2 or 1)
    assert flush.done


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (
            "flush_cash",
            {},
            r"no control request 'flush_cash' \(did you mean 'flush_cache'\?\); all",
        ),
        ("abort", {}, r"a method of its own: abort\(rid\)"),
        (
            "flush_cache",
            {"timeout": 1.0},
            r"no field 'timeout' \(did you mean 'timeout_s'\?\); all",
        ),
        ("flush_cache", {"rid": "x"}, "no field 'rid'; allowed: timeout_s"),
        ("rpc", {}, "RpcReqInput needs method; allowed: method, parameters"),
        ("get_internal_state", {"x": 1}, "no field 'x'; allowed: none"),
        (
            "profile",
            {"req_type": "STOP"},
            "engine.control: req_type='STOP'; allowed: START_PROFILE, STOP_PROFILE",
        ),
    ],
)
def test_bad_requests(engine: Engine, name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        engine.control(name, **fields)
    engine.step()
    assert engine.idle  # nothing was sent


def test_value_that_the_scheduler_could_not_read(engine: Engine) -> None:
    """The value would end the Scheduler's event loop."""
    from sglang.srt.managers import io_struct

    if not hasattr(io_struct, "msgpack_encode"):
        pytest.skip("messages of this SGLang have no types that are looked at")
    with pytest.raises(UsageError, match=r"does not take \{'timeout_s': 'soon'\}: "):
        engine.control("flush_cache", timeout_s="soon")


@pytest.mark.pprank(sanitize="-logs")  # the last stage has no such weight
def test_field_that_is_called_name(engine: Engine) -> None:
    weight = "model.layers.0.self_attn.o_proj.weight"
    asked = engine.control("get_weights_by_name", name=weight, truncate_size=2, wait=True)
    assert asked.fields["name"] == weight
    assert len(asked.answer.parameter) == 2  # the first stage has it


@pytest.fixture
def sender(engine: Engine) -> Any:
    """Return this stage's sender of answers; restore it after the test."""
    sender = engine.scheduler.ipc_channels.send_to_tokenizer
    before = sender.send_output
    yield sender
    sender.send_output = before


@pytest.fixture
def dispatch(engine: Engine) -> Any:
    """Return this stage's dispatcher of requests; restore it after the test."""
    before = engine.scheduler._request_dispatcher
    yield before
    engine.scheduler._request_dispatcher = before


def test_answer_that_never_comes(engine: Engine, sender: Any) -> None:
    sender.send_output = lambda *_: None
    flush = engine.control("flush_cache")
    with pytest.raises(EngineStalled, match=r"control\('flush_cache'\): no answer came"):
        flush.wait()
    assert engine.idle  # it is reported once


@pytest.mark.usefixtures("dispatch")
def test_stage_that_does_not_do_it(engine: Engine, pprank: Pprank) -> None:
    """The first stage's answer has come all the same."""
    last = pprank.num_stages - 1
    if pprank.is_last_stage:
        engine.scheduler._request_dispatcher = lambda _: None
    flush = engine.control("flush_cache")
    with pytest.raises(EngineStalled, match=f"stage {last} has not handled it"):
        flush.wait()
    assert (flush.answer is None) == (pprank.num_stages == 1)


def test_answer_that_is_given_twice(engine: Engine, sender: Any, pprank: Pprank) -> None:
    send = sender.send_output
    if pprank.is_last_stage:
        sender.send_output = lambda *args: (send(*args), send(*args))
    with pytest.raises(AnsweredTwice, match=r"has answered control\('flush_cache'\) twice"):
        engine.control("flush_cache", wait=True)


def test_answer_that_is_sent_twice(
    engine: Engine, sender: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change bypasses the plugin."""
    socket = sender.socket
    for name in ("send", "send_pyobj") if socket is not None else ():
        send = getattr(socket, name)
        monkeypatch.setattr(socket, name, lambda *a, send=send, **k: (send(*a, **k), send(*a, **k)))
    with pytest.raises(AnsweredTwice, match="has sent more answers than it was asked"):
        engine.control("flush_cache", wait=True)


def test_request_that_is_handled_twice(engine: Engine, dispatch: Any, pprank: Pprank) -> None:
    if pprank.is_last_stage:
        engine.scheduler._request_dispatcher = lambda r: (dispatch(r), dispatch(r))[0]
    with pytest.raises(AnsweredTwice, match=r"has handled control\('flush_cache'\) twice"):
        engine.control("flush_cache", wait=True)


def test_stages_that_do_not_answer_alike(
    engine: Engine, pprank: Pprank, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pprank.num_stages == 1:
        pytest.skip("needs two stages")
    with monkeypatch.context() as patch:
        if pprank.is_last_stage:
            patch.setattr(engine.scheduler, "is_fully_idle", lambda **_: False)
        flush = engine.control("flush_cache")
        with pytest.raises(StagesDiffer, match=r"did not answer control\('flush_cache'\) alike"):
            flush.wait()
    assert flush.answer.success
