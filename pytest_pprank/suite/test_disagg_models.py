"""Prefill and decode of other models, with pages, grammars, priorities and little memory.

Starting a worker group costs more than a test, so several settings share one. Plain settings are in
test_disagg.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.grammars import NUMBERS, OTHERS, follows
from pytest_pprank.suite.releases import latent_attention_runs

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Observe, Pprank

CHUNK = 64
PAGE = 16
LARGE_PAGE = 64

grammars = "xgrammar" if find_spec("xgrammar") and not is_older_than("0.5.18") else "none"
needs_grammars = pytest.mark.skipif(
    grammars == "none",
    reason="xgrammar is not installed, or SGLang is older than 0.5.18: no grammars on cpu",
)


def settle(disagg: Disagg, *bound: str) -> None:
    """Run until nothing is under way; check all requests but those in `bound`, and all memory."""
    disagg.drain()
    free = [result for rid, result in disagg.results.items() if rid not in bound]
    assert_tokens_equal_reference([result for result in free if end_of(result) != "abort"])
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)


def lengths_around(*sizes: int) -> list[int]:
    """Return lengths just below, at and just above these sizes."""
    return [size + more for size in sizes for more in (-1, 0, 1)]


# late metadata: the known bug decode-stages-differ-by-late-metadata
@pytest.mark.pprank(prefill=2, decode=2, perturb="-metadata")
@pytest.mark.sglang(
    model_path="tiny:qwen3-moe",
    page_size=PAGE,
    chunked_prefill_size=CHUNK,
    grammar_backend=grammars,
    enable_priority_scheduling=True,
    enable_mixed_chunk=True,
    prefill={"max_running_requests": 2},
    decode={"max_total_tokens": 24 * PAGE, "num_reserved_decode_tokens": 2},
)
class TestExpertsAndPages:
    def test_prompts_that_end_beside_a_page(self, disagg: Disagg) -> None:
        results = disagg.generate(lengths_around(PAGE, CHUNK, CHUNK + PAGE, 3 * CHUNK), 5)
        assert len(results[-1].extends) > 1
        settle(disagg)

    def test_prefix_that_ends_in_the_middle_of_a_page(self, disagg: Disagg) -> None:
        """Prefill has whole pages of it in its cache, and sends them to decode, too."""
        prompt = [*range(1000, 1000 + CHUNK + PAGE + 5)]
        disagg.generate([prompt], 3)
        results = disagg.generate([[*prompt, 7, 8], [*prompt[: CHUNK + 3], 5], prompt], 4)
        assert [r.cached_tokens for r in results] == [CHUNK + PAGE, CHUNK, CHUNK + PAGE]
        settle(disagg)

    @needs_grammars
    def test_grammars(self, disagg: Disagg) -> None:
        """Prefill samples the first token by the grammar; decode goes on behind it."""
        first_differs = r"4[0-9]{3} (5[0-9]{3} )+"
        bound = {
            disagg.submit(3 * CHUNK + 5, 7, regex=first_differs): first_differs,
            disagg.submit(20, 5, regex=OTHERS): OTHERS,
            disagg.submit(21, 1, regex=NUMBERS): NUMBERS,
        }
        disagg.submit(PAGE, 6)
        settle(disagg, *bound)
        for rid, grammar in bound.items():
            tokens = disagg.results[rid].token_ids
            assert follows(tokens, grammar), (rid, tokens)

    @pytest.mark.pprank(perturb="none")  # all must become ready together
    def test_priorities(self, disagg: Disagg, pprank: Pprank) -> None:
        """Of requests that become ready together, prefill starts that of the highest priority."""
        low = [disagg.submit(40 + i, 3, priority=0, to="decode") for i in range(3)]
        high = disagg.submit(CHUNK, 3, priority=20, to="decode")
        disagg.step()
        ready = [*["WaitingForInput"] * 4]
        disagg.run_until(lambda: all([*v.rooms.values()] == ready for v in disagg.prefill.stages))
        for rid in (*low, high):
            disagg.forward(rid, to="prefill")
        settle(disagg)
        if pprank.role == "prefill":
            assert disagg.forwards[0].rids == (high,)

    @needs_grammars
    def test_retraction(self, disagg: Disagg) -> None:
        """Decode keeps the KV of a retracted request on the host, on both stages."""
        bound = disagg.submit(31, 40, regex=NUMBERS)
        for index in range(6):
            disagg.submit(PAGE * (1 + index % 3) + index, 40)
        settle(disagg, bound)
        assert any(result.retractions for result in disagg.results.values())
        assert follows(disagg.results[bound].token_ids, NUMBERS)


@latent_attention_runs
@pytest.mark.pprank(prefill=2, decode=1)
@pytest.mark.sglang(
    model_path="tiny:deepseek-v3",
    page_size=LARGE_PAGE,
    chunked_prefill_size=2 * LARGE_PAGE,
    decode={"disaggregation_decode_enable_radix_cache": True},
)
class TestLatentAttentionAndCachedPrefixes:
    """Decode has a prefix cache, too: prefill sends only what decode does not have."""

    def test_prompts_that_end_beside_a_page(self, disagg: Disagg) -> None:
        results = disagg.generate(lengths_around(LARGE_PAGE, 2 * LARGE_PAGE, 5 * LARGE_PAGE), 5)
        assert len(results[-1].extends) > 1
        settle(disagg)

    def test_prefix_that_decode_has(self, disagg: Disagg, observe: Observe, pprank: Pprank) -> None:
        """The KV of the first prompt's output is in decode's cache, and not in prefill's."""
        (first,) = disagg.generate([2 * LARGE_PAGE + 5], LARGE_PAGE)
        longer = [*first.prompt, *first.token_ids]
        before = len(observe.calls("transfer_send"))
        prompts = [[*longer, 7, 8, 9], [*longer[: LARGE_PAGE + 3], 5]]
        results = [result for prompt in prompts for result in disagg.generate([prompt], 4)]
        assert [r.extends[0][0] for r in results] == [2 * LARGE_PAGE, LARGE_PAGE]
        settle(disagg)
        sent = [page for call in observe.calls("transfer_send")[before:] for page in call.facts.kv]
        if pprank.role == "prefill":
            assert len(sent) == 2, "pages that are not full, and no others"

    def test_prefix_that_is_decoded_meanwhile(self, disagg: Disagg) -> None:
        prompt = [*range(1000, 1000 + 2 * LARGE_PAGE + 9)]
        first = disagg.submit(prompt, 40)
        disagg.run_until_state(first, "decoding")
        disagg.submit([*prompt, 3, 4], 5)
        aborted = disagg.submit([*prompt, 5], 60)
        disagg.abort_when(aborted, "decoding")
        disagg.submit([*prompt, 6, 6], 5)
        settle(disagg)
