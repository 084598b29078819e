"""What a Result has beside tokens is compared with the reference: each kind is wrong once here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_tokens_equal_reference
from pytest_pprank.errors import UsageError

if TYPE_CHECKING:
    from pytest_pprank import Engine

TOP: dict[str, Any] = {"top_logprobs": 2, "token_ids_logprobs": [5, 17]}


def test_wrong_logprobs_by_token_are_told(engine: Engine) -> None:
    (result,) = engine.generate([9], **TOP)
    assert_tokens_equal_reference(result)
    result.top_logprobs[3][result.token_ids[3]] -= 0.5
    result.token_ids_logprobs[2][17] += 0.5
    with pytest.raises(AssertionError) as error:
        assert_tokens_equal_reference(result)
    assert "logprobs of the likeliest tokens at output token 3: -" in str(error.value)
    assert "logprobs of the tokens asked for at output token 2: -" in str(error.value)


def test_other_tokens_than_the_likeliest_are_told(engine: Engine) -> None:
    """Their logprobs are right, and one with a larger logprob is missing."""
    (three,) = engine.generate([9], top_logprobs=3)
    for values in three.top_logprobs:
        del values[max(values, key=lambda token: values[token])]
    with pytest.raises(AssertionError, match="not the likeliest: number 0 is missing"):
        assert_tokens_equal_reference(three)


def test_logprobs_of_a_prompt(engine: Engine) -> None:
    (result,) = engine.generate([300], prompt_logprobs=True, top_logprobs=2)
    assert len(result.prompt_top_logprobs) == 299
    assert_tokens_equal_reference(result)
    result.prompt_top_logprobs.pop()
    with pytest.raises(AssertionError, match="for 298 prompt tokens of 299"):
        assert_tokens_equal_reference(result)


@pytest.mark.pprank(pp=1)
@pytest.mark.sglang(enable_return_hidden_states=True)
def test_wrong_hidden_states_are_told(engine: Engine) -> None:
    (result,) = engine.generate([9], hidden_states=True)
    assert len(result.hidden_states) == 9 + 7
    assert_tokens_equal_reference(result)
    result.hidden_states[10][3] += 0.5
    with pytest.raises(AssertionError, match="the hidden state of token 10 of 16 is off"):
        assert_tokens_equal_reference(result)


def test_penalties_that_do_not_count_are_told(engine: Engine) -> None:
    """The same tokens, said to have been chosen with or without penalties and biases."""
    changes: dict[str, Any] = {
        "frequency_penalty": -1.9,
        "presence_penalty": -1.9,
        "repetition_penalty": 0.5,
        "logit_bias": {"77": 9.0},
    }
    for name, value in changes.items():
        (result,) = engine.generate([20], 12, **{name: value})
        assert_tokens_equal_reference(result)
        del result.sampling[name]
        with pytest.raises(AssertionError, match="the reference has"):
            assert_tokens_equal_reference(result)


@pytest.mark.sglang(enable_deterministic_inference=True)
def test_wrong_token_of_a_seed_is_told(engine: Engine) -> None:
    """Also one that is likelier than the right one."""
    (greedy,) = engine.generate([9], 1)
    (result,) = engine.generate([greedy.prompt], temperature=0.9, sampling_seed=4)
    assert_tokens_equal_reference(result)
    assert result.token_ids[0] != greedy.token_ids[0]
    result.token_ids[0] = greedy.token_ids[0]
    with pytest.raises(AssertionError, match="output token 0 of 8"):
        assert_tokens_equal_reference(result)


def test_cut_distributions_have_no_reference(engine: Engine) -> None:
    results = engine.generate([9], temperature=0.7, sampling_seed=1, top_k=3)
    with pytest.raises(UsageError, match=r"temperature=0\.7, top_k=3"):
        assert_tokens_equal_reference(results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_logprobs": -1}, r"top_logprobs=-1; allowed: 0 to 10240"),
        ({"token_ids_logprobs": [3, 10240]}, r"token_ids_logprobs has 10240; .* 0 to 10239"),
    ],
)
def test_what_cannot_be_asked_for(engine: Engine, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine.submit(9, **options)  # type: ignore[arg-type]


def test_stop_strings_need_a_tokenizer(engine: Engine) -> None:
    from pytest_pprank.sglang.model.words import give_tokenizer, words_of

    (whole,) = engine.generate([9])
    give_tokenizer(engine.scheduler)
    (result,) = engine.generate([whole.prompt], stop=words_of(whole.token_ids[1:3]))
    assert result.token_ids == whole.token_ids[:3]


def test_tokenizer_is_gone_in_the_next_test(engine: Engine) -> None:
    assert engine.scheduler.tokenizer is None
