"""All that a request may ask for beside greedy tokens, alone and in batches with other requests.

Penalties, biases, kinds of logprobs and so on are fields of a batch, by request: they are filtered
when a request ends, merged when one joins, and computed by the last stage for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.releases import aborts_end_all_slots

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine
    from pytest_pprank.sglang.compat.objects import Options

CHUNK = 64
FORGOTTEN = "penalties-forgotten-by-retraction"
LIST_FOR_NONE = "token-ids-logprobs-beside-none-end-the-scheduler"
TOKEN_IDS = "token-ids-logprobs"
NO_FIRST = pytest.param(
    TOKEN_IDS,
    marks=pytest.mark.pprank(known_bug=("decode-lacks-first-logprobs-of-token-ids", LIST_FOR_NONE)),
)
END = 2
"""The model's end-of-text token."""

SCORES: Mapping[str, Options] = {
    "top-logprobs": {"top_logprobs": 3},
    TOKEN_IDS: {"token_ids_logprobs": (5, 9000, 17)},
    "prompt-top-logprobs": {"prompt_logprobs": True, "top_logprobs": 2},
}
CHOICES: Mapping[str, Options] = {
    "frequency-penalty": {"frequency_penalty": -0.9},
    "presence-penalty": {"presence_penalty": -1.5},
    "repetition-penalty": {"repetition_penalty": 0.6},
    "logit-bias": {"logit_bias": {"77": 4.5, "4001": 4.5}},
}
"""What changes the tokens; penalties that reward, because greedy tokens seldom repeat."""
KINDS = {**SCORES, **CHOICES}

# kv_pressure retracts requests, and what was counted of their tokens is forgotten (FORGOTTEN)
counts_tokens = pytest.mark.pprank(perturb="-kv_pressure")
kinds = [
    pytest.param(kind, marks=counts_tokens) if "penalty" in kind else kind
    for kind in KINDS
    if kind != TOKEN_IDS
]
little_kv = pytest.mark.sglang(
    max_total_tokens=128, schedule_conservativeness=0.05, chunked_prefill_size=32
)

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK, enable_custom_logit_processor=True)


def check(engine: Engine) -> None:
    """Run until all is done; check tokens, logprobs and so on, and that all memory is free."""
    engine.drain()
    assert_tokens_equal_reference(engine.results.values())
    for result in engine.results.values():
        assert len(result.logprobs) in (0, len(result.token_ids))
    assert_kv_balanced(engine.scheduler)


def come_and_go(engine: Engine, *kinds: Options) -> None:
    """Send requests of these kinds so that each meets others in a batch that begin and end.

    One of each kind is aborted while it is decoded, and one has a prompt of several chunks.
    """
    asked = cycle(kinds)
    for index in range(max(4, len(kinds))):
        engine.submit(12 + 5 * index, 3 + 4 * (index % 3), **next(asked))
        engine.step(1)
    for kind in kinds[:2]:
        aborted = engine.submit(20, 60, **kind)
        engine.run_until(lambda: engine.results[aborted].token_ids)  # noqa: B023
        engine.submit(CHUNK + 3, 3, **next(asked))
        engine.abort(aborted)
        engine.submit(9, 5, **next(asked))
    check(engine)


@aborts_end_all_slots
@pytest.mark.parametrize(
    "kind",
    [pytest.param(TOKEN_IDS, marks=pytest.mark.pprank(known_bug=LIST_FOR_NONE)), *kinds],
)
def test_beside_requests_without(engine: Engine, kind: str) -> None:
    come_and_go(engine, KINDS[kind], {})


@counts_tokens
@pytest.mark.pprank(known_bug=LIST_FOR_NONE)
def test_all_kinds_at_once(engine: Engine) -> None:
    come_and_go(engine, *KINDS.values())


@pytest.mark.pprank(known_bug=("prompt-logprobs-of-token-ids-block-the-forward", LIST_FOR_NONE))
def test_logprobs_of_token_ids_in_prompts(engine: Engine) -> None:
    come_and_go(engine, {"prompt_logprobs": True, "token_ids_logprobs": (5, 9000)}, {})


@counts_tokens
def test_alone(engine: Engine) -> None:
    """Alone in its batch, with a prompt of two chunks; then again, with a cached prefix."""
    for kind in (KINDS["prompt-top-logprobs"], KINDS["repetition-penalty"], KINDS["logit-bias"]):
        (first,) = engine.generate([CHUNK + 9], 4, **kind)
        engine.generate([[*first.prompt, 7]], 2, **kind)
    check(engine)


@little_kv
def test_scores_of_requests_that_are_retracted(engine: Engine) -> None:
    kinds = [KINDS["prompt-top-logprobs"], KINDS["logit-bias"], KINDS["top-logprobs"], {}]
    for index, kind in enumerate(kinds):
        engine.submit(20 + index, 24, **kind)
    check(engine)
    assert any(result.retractions for result in engine.results.values())


@little_kv
@pytest.mark.pprank(known_bug=FORGOTTEN)
def test_penalties_of_requests_that_are_retracted(engine: Engine) -> None:
    """What a request has produced before it was retracted counts.

    All choose among few tokens, so that their number counts at each step.
    """
    few = dict.fromkeys(map(str, range(100, 108)), 30.0)
    penalties: cycle[Options] = cycle(
        [{"frequency_penalty": 1.3}, {"presence_penalty": 1.9}, {"repetition_penalty": 1.6}]
    )
    for index in range(4):
        engine.submit(20 + index, 24, logit_bias=few, **next(penalties))
    engine.drain()
    assert any(result.retractions for result in engine.results.values())
    check(engine)


@counts_tokens
@pytest.mark.sglang(enable_mixed_chunk=True)
def test_chunks_in_one_batch_with_decoding(engine: Engine) -> None:
    """The prompts and the decoded requests ask for different things.

    SGLang mixes no requests that want logprobs.
    """
    asked = cycle([*CHOICES.values(), {}])
    for index in range(3):
        engine.submit(20 + index, 12 + 4 * index, **next(asked))
    engine.run_until(lambda: all(result.token_ids for result in engine.results.values()))
    for length in (2 * CHUNK + 1, 30, CHUNK + 7, 9):
        engine.submit(length, 6, **next(asked))
        engine.step(1)
    check(engine)
    assert "mixed" in {forward.mode for forward in engine.forwards}


def test_stop_tokens(engine: Engine) -> None:
    """Requests stop at their own token, at the end-of-text token, or ignore it."""
    (whole,) = engine.generate([40], max_new_tokens=9)
    stop = whole.token_ids[4]
    ended: Options = {"logit_bias": {str(END): 100.0}}
    at_stop = engine.submit(whole.prompt, 9, stop_token_ids=[stop, 1])
    at_end = engine.submit(25, 9, ignore_eos=False, **ended)
    ignores = engine.submit(30, 9, ignore_eos=True, **ended)
    plain = engine.submit(35, 12, ignore_eos=False)
    check(engine)
    results = engine.results
    assert results[at_stop].finish_reason == {"type": "stop", "matched": stop}
    assert results[at_stop].token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert results[at_end].finish_reason == {"type": "stop", "matched": END}
    assert results[at_end].token_ids == [END]
    assert results[ignores].token_ids == [END] * 9
    assert end_of(results[plain]) == "length"


def test_stop_strings(engine: Engine) -> None:
    """The text of a token is its number; a stop string may reach over several tokens."""
    from pytest_pprank.sglang.model.words import give_tokenizer, words_of

    give_tokenizer(engine.scheduler)
    prompts = [40, 3 * CHUNK, 50]
    whole = engine.generate(prompts, max_new_tokens=9)
    stops = [words_of(whole[0].token_ids[2:5]), words_of(whole[1].token_ids[3:4])]
    rids = [
        engine.submit(result.prompt, 9, stop=stops[index] if index < 2 else "none", logprobs=True)
        for index, result in enumerate(whole)
    ]
    engine.submit(20, 14)
    check(engine)
    found = [engine.results[rid] for rid in rids]
    assert [end_of(result) for result in found] == ["stop", "stop", "length"]
    assert [len(result.token_ids) for result in found] == [5, 4, 9]


@counts_tokens
def test_least_number_of_tokens(engine: Engine) -> None:
    """The end-of-text token is barred at first, in one batch for different numbers of tokens."""
    from pytest_pprank.sglang.model.words import give_tokenizer

    give_tokenizer(engine.scheduler)
    ended: Options = {"logit_bias": {str(END): 100.0}, "ignore_eos": False}
    rids = {}
    for index, least in enumerate((6, 0, 9, 3)):
        rids[engine.submit(20 + 9 * index, 12, min_new_tokens=least, **ended)] = least
        engine.submit(9 + index, 4)
        engine.step(3)
    check(engine)
    for rid, least in rids.items():
        assert len(engine.results[rid].token_ids) == least + 1
        assert end_of(engine.results[rid]) == "stop"


def test_processors_of_logits(engine: Engine) -> None:
    """A processor that bars some tokens is like a bias of minus infinity for them."""
    from pytest_pprank.sglang.compat.sampling import barring_processor

    barred = [engine.generate([length])[0].token_ids for length in (30, 40)]
    fields = {"custom_logit_processor": barring_processor()}
    rids: dict[str, list[int]] = {}
    for index in range(3):
        tokens = sorted(barred[0][: 2 + index])
        prompt = [*engine.results["req-000"].prompt][: 30 - index]
        rid = engine.submit(prompt, 6, fields=fields, custom_params={"token_ids": tokens})
        rids[rid] = tokens
        engine.submit(20 + index, 5 * (index % 3) + 1)
        engine.run_until(lambda: engine.results[rid].finished)  # noqa: B023
    engine.drain()
    as_bias = [
        replace(result, sampling=result.sampling | {"logit_bias": dict.fromkeys(tokens, -1e30)})
        for result, tokens in ((engine.results[rid], tokens) for rid, tokens in rids.items())
    ]
    others = [result for rid, result in engine.results.items() if rid not in rids]
    assert_tokens_equal_reference([*as_bias, *others])
    assert any(set(result.token_ids) for result in as_bias)
    assert_kv_balanced(engine.scheduler)


def test_several_answers_to_a_prompt(engine: Engine) -> None:
    """As SGLang sends ``n=4``: the prompt with no token to make, then four times at once."""
    prompt = [*range(1000, 1000 + CHUNK + 20)]
    engine.submit(prompt, 0, stream=False)
    engine.drain()
    results = engine.generate([prompt] * 4, 6, top_logprobs=2)
    assert all(result.cached_tokens == len(prompt) - 1 for result in results)
    assert len({tuple(result.token_ids) for result in results}) == 1
    check(engine)


def test_requests_of_a_session(engine: Engine) -> None:
    """Each request continues the text of the one before, prompt and answer."""
    from pytest_pprank.sglang.compat.sampling import in_session

    engine.control("open_session", capacity_of_str_len=4096, session_id="talk", wait=True)
    text: list[int] = []
    rid = None
    for turn, length in enumerate((2 * CHUNK + 5, 9, CHUNK)):
        new = [3000 + 100 * turn + index for index in range(length)]
        rid = engine.submit(new, 5, fields=in_session("talk", rid))
        engine.submit(20 + turn, 7)
        engine.run_until(lambda: engine.results[rid].finished)  # noqa: B023
        result = engine.results[rid]
        text += new
        assert_tokens_equal_reference(replace(result, prompt=tuple(text)))
        if turn:
            assert result.cached_tokens > len(text) - length - 6
        text += result.token_ids
        del engine.results[rid]  # its prompt alone does not explain its tokens
    engine.control("close_session", session_id="talk", wait=True)
    check(engine)


@pytest.mark.sglang(enable_deterministic_inference=True)
class TestSeeds:
    @aborts_end_all_slots
    def test_tokens_of_a_seed(self, engine: Engine) -> None:
        """They depend on seed, position and logits alone, whatever else is in the batch."""
        drawn = [
            {"temperature": 0.3 + 0.3 * index, "sampling_seed": 7 * index} for index in range(3)
        ]
        biased = {**drawn[0], **CHOICES["logit-bias"], "top_logprobs": 2}
        come_and_go(engine, *drawn, biased)

    def test_several_answers_to_a_prompt(self, engine: Engine) -> None:
        results = [
            engine.submit([*range(1000, 1100)], 6, temperature=1.0, sampling_seed=seed)
            for seed in (1, 2, 3, 1)
        ]
        check(engine)
        answers = [tuple(engine.results[rid].token_ids) for rid in results]
        assert answers[0] == answers[3]
        assert len(set(answers)) == 3

    @little_kv
    def test_requests_that_are_retracted(self, engine: Engine) -> None:
        for index in range(4):
            engine.submit(20 + index, 20, temperature=0.8, sampling_seed=index, logprobs=True)
        check(engine)
        assert any(result.retractions for result in engine.results.values())


@pytest.mark.sglang(enable_return_hidden_states=True)
class TestHiddenStates:
    @pytest.mark.pprank(pp=1, known_bug="hidden-states-cut-at-wrong-places")
    def test_one_stage(self, engine: Engine) -> None:
        """SGLang returns those of a prompt's last chunk."""
        rids = []
        for index, length in enumerate((20, 2 * CHUNK + 5, 30)):
            rids.append(engine.submit(length, 3 + 4 * index, hidden_states=True))
            engine.submit(9 + index, 6)
            engine.step(2)
        check(engine)
        for rid in rids:
            result = engine.results[rid]
            first = result.extends[-1][0]
            computed = len(result.prompt) - first + len(result.token_ids) - 1
            assert len(result.hidden_states) == computed

    @pytest.mark.pprank(known_bug="hidden-states-end-a-pipeline")
    def test_several_stages(self, engine: Engine) -> None:
        engine.submit(30, 5)
        engine.submit(20, 5, hidden_states=True)
        check(engine)


@pytest.mark.pprank(prefill=2, decode=1)
class TestDisagg:
    """The first token is prefill's, and comes with its logprobs through the metadata buffers."""

    @pytest.mark.parametrize("kind", [*kinds, NO_FIRST])
    def test_beside_requests_without(self, disagg: Disagg, kind: str) -> None:
        asked = cycle([KINDS[kind], {}])
        for index in range(4):
            disagg.submit(12 + 30 * index, 1 + 4 * (index % 3), **next(asked))
            disagg.step(2)
        aborted = disagg.submit(20, 60, **KINDS[kind])
        disagg.abort_when(aborted, "decoding")
        disagg.submit(9, 6, **next(asked))
        check(disagg)
        one_token = [
            replace(result, sampling=result.sampling | {"max_new_tokens": len(result.token_ids)})
            for result in disagg.prefill.results.values()
            if end_of(result) == "length"
        ]
        assert_tokens_equal_reference(one_token)

    @pytest.mark.pprank(known_bug="decode-shifts-logprobs-of-token-ids")
    def test_logprobs_of_token_ids_by_token(self, disagg: Disagg) -> None:
        """Each token that decode returns has a row of its own, also if nothing is in the first."""
        results = disagg.generate([20, 21, 22], 5, **KINDS[TOKEN_IDS])
        for result in results:
            rows = result.token_ids_logprobs
            assert len(rows) == len(result.token_ids), "rows of logprobs, tokens"
            assert all(rows[1:])

    @counts_tokens
    def test_all_kinds_at_once(self, disagg: Disagg) -> None:
        kinds = [KINDS[name] for name in KINDS if name != TOKEN_IDS]
        for index, kind in enumerate(kinds * 2):
            disagg.submit(10 + 7 * index, 2 + 2 * (index % 3), **kind)
        check(disagg)

    @pytest.mark.pprank(perturb="-polls")  # the long prompt must be the first to be ready
    def test_prompt_logprobs_beside_an_abort(self, disagg: Disagg) -> None:
        """It is aborted while the forward of the batch runs that it shares with others."""
        disagg.submit(4 * CHUNK, 3)
        disagg.step(1)
        scores: Options = {"prompt_logprobs": True, "top_logprobs": 2}
        gone, *others = [disagg.submit(12 + index, 4, **scores) for index in range(3)]
        disagg.run_until(lambda: bool(disagg.prefill.results[gone].extends))
        assert all(disagg.prefill.results[rid].extends for rid in others), "not in one batch"
        disagg.abort(gone, in_time=False)
        disagg.drain()
        one_token = [
            replace(result, sampling=result.sampling | {"max_new_tokens": len(result.token_ids)})
            for rid, result in disagg.prefill.results.items()
            if rid != gone
        ]
        assert_tokens_equal_reference(one_token)
        assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)
