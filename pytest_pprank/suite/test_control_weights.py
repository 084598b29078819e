"""New weights, from disk and from a message: on every stage, at every moment, or refused by all.

The reference follows. A request that meets a new output matrix has tokens of the old model, and
then of the new one, and its KV is the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.moments import (
    CHUNK,
    IDLE,
    MOMENTS,
    amid_a_prompt,
    amid_decoding,
    amid_waiting,
    check,
    idle,
)

if TYPE_CHECKING:
    import torch

    from pytest_pprank import Disagg, Engine, Pprank, Result
    from pytest_pprank.sglang.compat.objects import Options
    from pytest_pprank.sglang.driver.control import Control

    Weights = Mapping[str, torch.Tensor]

OUTPUT = "lm_head.weight"
"""The output matrix, which is on the last stage. Tokens depend on it, and KV does not."""
KEEP_CACHE: Options = {"flush_cache": False}
SESSIONS = not is_older_than("0.5.21")
"""Whether weights in messages come between begin_weight_update and end_weight_update."""

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)


@pytest.fixture
def other_weights(pprank: Pprank) -> Path:
    """Write a model of the same shape as the default one, with other weights."""
    from pytest_pprank.sglang.model.tiny import write_tiny_model
    from pytest_pprank.sglang.static.release import TINY_LAYERS

    if pprank.device.startswith("cuda"):
        pytest.skip("the tiny model for CUDA has another shape")
    layers = max(TINY_LAYERS, pprank.num_stages)
    return write_tiny_model(pprank.workdir / "other", layers=layers, seed=7)


class NewWeights:
    """Sends weights in messages. `own`: the path of the model; `weights`: its weights."""

    def __init__(self, engine: Engine, pprank: Pprank) -> None:
        from pytest_pprank.sglang.model.weights import weights_of

        self.engine, self.pprank = engine, pprank
        self.own = str(engine.scheduler.server_args.model_path)
        self.weights: Weights = weights_of(self.own)

    def control(self, name: str, fields: Options | None = None) -> Control:
        """Send a request to the roles, and wait until it is done."""
        control: Control = self.engine.control(name, **(fields or {}))
        control.wait()
        return control

    def send(self, *several: Weights, fields: Options | None = None) -> list[Control]:
        """Send weights in messages, all at once, and wait; in a session where SGLang has them.

        `fields`: of SGLang's message, and `role`.
        """
        from pytest_pprank.sglang.model.weights import serialized

        fields = fields or {}
        role = {name: value for name, value in fields.items() if name == "role"}
        if SESSIONS:
            assert succeeded(self.control("begin_weight_update", role))
        data = [serialized(weights, self.pprank) for weights in several]
        name = "update_weights_from_tensor"
        sent = [self.engine.control(name, serialized_named_tensors=each, **fields) for each in data]
        for control in sent:
            control.wait()
        if SESSIONS:
            assert succeeded(self.control("end_weight_update", role))
        return sent

    def model_with(self, weights: Weights) -> str:
        """Return the path of the model with these weights in place of its own."""
        from pytest_pprank.sglang.model.weights import write_changed

        return str(
            write_changed(self.pprank.workdir / f"changed-{len(weights)}", self.own, weights)
        )

    def restore(self, *names: str) -> None:
        """Send the model's own weights of these names, or all of them."""
        weights = {name: self.weights[name] for name in names or self.weights}
        assert all(map(succeeded, self.send(weights)))


@pytest.fixture
def new(request: pytest.FixtureRequest, pprank: Pprank) -> NewWeights:
    if pprank.device.startswith("cuda"):
        pytest.skip("near ties: which model a token is of cannot be told in float16")
    name = "disagg" if "disagg" in request.fixturenames else "engine"
    return NewWeights(request.getfixturevalue(name), pprank)


def succeeded(control: Control) -> bool:
    """Return whether a request has succeeded on all roles; fails if on some only."""
    (answer,) = {bool(answer.success) for answer in control.answers.values()}
    return answer


def makers(result: Result, **models: str) -> str:
    """Return for each token of a result whose it is: one of the letters of `models`, or ``?``."""
    from pytest_pprank.sglang.model.reference import judge

    made = ["?"] * len(result.token_ids)
    for letter, path in models.items():
        expected = judge(path, result.prompt, tuple(result.token_ids)).expected
        for index, token in enumerate(result.token_ids):
            if expected[index].token == token:
                made[index] = letter
    return "".join(made)


def check_makers(engine: Engine, pattern: str, **models: str) -> dict[str, str]:
    """Check that all requests have tokens of these models as in `pattern`; return them by id."""
    engine.drain()
    found = {rid: makers(result, **models) for rid, result in engine.results.items()}
    for rid, made in found.items():
        assert end_of(engine.results[rid]) == "length"
        assert re.fullmatch(pattern, made), f"{rid}: its tokens are of the models {made}"
    assert_kv_balanced(engine.scheduler)
    return found


class TestTensors:
    """Weights in the message itself."""

    def test_all_weights(self, engine: Engine, new: NewWeights) -> None:
        """Every stage has the new ones, and forgets the KV of the old ones."""
        changed = {name: weight.roll(1, 0) for name, weight in new.weights.items()}
        model = new.model_with(changed)
        prompt = [*range(1000, 1000 + 2 * CHUNK)]
        (before,) = engine.generate([prompt], 4)
        engine.step(4)
        assert all(map(succeeded, new.send(changed)))
        (after,) = engine.generate([prompt], 4)
        engine.step(4)
        new.restore()
        (again,) = engine.generate([prompt], 4)
        assert after.cached_tokens == again.cached_tokens == 0
        assert_tokens_equal_reference([before, replace(after, model_path=model), again])
        assert after.token_ids != before.token_ids
        assert_kv_balanced(engine.scheduler)

    @pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != "idle"])
    def test_twice_at_once(self, engine: Engine, new: NewWeights, moment: str) -> None:
        """The KV of other requests stays; the last message counts."""
        changed = {OUTPUT: new.weights[OUTPUT].roll(1, 0)}
        model = new.model_with(changed)
        MOMENTS[moment](engine)
        sent = new.send({OUTPUT: new.weights[OUTPUT].roll(2, 0)}, changed, fields=KEEP_CACHE)
        assert all(map(succeeded, sent))
        later = engine.submit(25, 3)
        made = check_makers(engine, "a*b*", a=new.own, b=model)
        assert made[later] == "bbb"
        assert moment in IDLE or any("ab" in each for each in made.values())
        new.restore(OUTPUT)

    @pytest.mark.pprank(sanitize="-logs", known_bug="weights-without-a-flush-end-the-scheduler")
    def test_flush_that_is_refused(self, engine: Engine, new: NewWeights) -> None:
        """The weights are new all the same, and all stages say that the cache is not flushed."""
        changed = {OUTPUT: new.weights[OUTPUT].roll(1, 0)}
        model = new.model_with(changed)
        amid_a_prompt(engine)
        (sent,) = new.send(changed)
        assert not succeeded(sent)
        check_makers(engine, "a*b*", a=new.own, b=model)
        new.restore(OUTPUT)

    def test_name_that_no_stage_has(self, engine: Engine, new: NewWeights) -> None:
        """A stage ignores the names of other stages; nothing changes."""
        wrong = {"model.layers.0.mlp.dawn_proj.weight": new.weights[OUTPUT]}
        amid_decoding(engine)
        new.send(wrong, fields=KEEP_CACHE)
        engine.submit(25, 3)
        check(engine)

    @pytest.mark.pprank(sanitize="-logs", known_bug="weights-of-another-shape-end-the-scheduler")
    def test_shape_that_is_wrong(self, engine: Engine, new: NewWeights) -> None:
        """One stage has the weight; all refuse it."""
        name = max(name for name in new.weights if name.endswith("mlp.down_proj.weight"))
        idle(engine)
        (sent,) = new.send({name: new.weights[name][:-1]})
        assert not succeeded(sent)
        check(engine)

    @pytest.mark.skipif(not SESSIONS, reason="before SGLang 0.5.21 there are no sessions")
    def test_sessions(self, engine: Engine, new: NewWeights) -> None:
        """Weights outside of a session are refused, and a second session, and a second end."""
        from pytest_pprank.sglang.model.weights import serialized

        changed = {OUTPUT: new.weights[OUTPUT].roll(1, 0)}
        data = serialized(changed, new.pprank)
        amid_decoding(engine)
        update = new.control("update_weights_from_tensor", {"serialized_named_tensors": data})
        assert not succeeded(update)
        assert not succeeded(new.control("end_weight_update"))
        assert succeeded(new.control("begin_weight_update"))
        assert not succeeded(new.control("begin_weight_update"))
        assert succeeded(new.control("end_weight_update"))
        check(engine)


@pytest.mark.pprank(prefill=2, decode=1)
class TestDisagg:
    @pytest.mark.parametrize(
        ("role", "pattern", "of_later"),
        [("prefill", "[ab]a*", "baa"), ("decode", "aa*b*", "abb"), ("both", "[ab]a*b*", "bbb")],
    )
    def test_roles(
        self, disagg: Disagg, new: NewWeights, role: str, pattern: str, of_later: str
    ) -> None:
        """Prefill makes the first token, and decode all others."""
        changed = {OUTPUT: new.weights[OUTPUT].roll(1, 0)}
        model = new.model_with(changed)
        roles = ("prefill", "decode") if role == "both" else (role,)
        decoded = disagg.submit(30, 20)
        disagg.run_until_state(decoded, "decoding")
        slow = disagg.slow_transfer(stages=[0])
        sent = disagg.submit(3 * CHUNK, 4)
        disagg.run_until_state(sent, "transferring")
        assert all(map(succeeded, new.send(changed, fields={"role": roles, **KEEP_CACHE})))
        slow.release()
        later = disagg.submit(25, 3)
        made = check_makers(disagg, pattern, a=new.own, b=model)
        assert made[later] == of_later
        assert role == "prefill" or "ab" in made[decoded]
        new.restore(OUTPUT)


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
