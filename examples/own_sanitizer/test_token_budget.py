"""A prompt of 150 tokens goes through the stages in chunks that keep to the budget.

pytest -p pytest_pprank --pp-size 2 examples/own_sanitizer

The bug: without the marker `sglang` a chunk has up to 256 tokens. SGLang computes the same tokens,
and nothing but the sanitizer of `token_budget.py` is red. `examples/conftest.py` registers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine


@pytest.mark.pprank(sanitize="+token_budget")
@pytest.mark.sglang(chunked_prefill_size=64)
def test_prompt_keeps_to_the_budget(engine: Engine) -> None:
    assert_tokens_equal_reference(engine.generate([150], max_new_tokens=4))
