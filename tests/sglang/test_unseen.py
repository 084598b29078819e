"""Bugs that the stock suite was not made for: fixes of SGLang's history, taken out of it at once.

Each left the suite green until there was a test or a check for its kind (inner/unseen).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.grammars import needs_grammars

if TYPE_CHECKING:
    from tests.conftest import Run

pytestmark = [
    pytest.mark.skipif(is_older_than("0.5.23"), reason="the fixes are newer"),
    *needs_grammars,
]
REVERTS = sorted(path.name for path in (Path(__file__).parent / "inner" / "unseen").glob("*.yaml"))
SEEN = {
    "message_order::test_pipeline[pp2]": [
        "stages wait for each other if nothing keeps their messages",
        "send_first",
    ],
    "disagg::test_one_request[prefill2-decode1]": [
        "bookkeeping: still in SGLang's tables, with all requests done:",
        "KV manager.prefill_response_tracker: room 10",
    ],
    "disagg_peers::test_heartbeat_that_is_missed_after_a_return[prefill2-decode1]": [
        "one missed heartbeat has cost decode prefill",
    ],
    "disagg_peers::test_flush_of_decode_while_prefill_still_writes[prefill2-decode1]": [
        "decode has flushed memory that prefill still writes to",
    ],
    "disagg_alone::test_prompt_that_was_computed_early_gives_way[normal-prefill1-decode1]": [
        "EngineStalled: the condition of run_until did not come true",
    ],
    "outputs::TestDisagg::test_prompt_logprobs_beside_an_abort[prefill2-decode1]": [
        "tokens differ from the reference",
        "the logprob of prompt token 1",
    ],
    "control_states::TestPause::test_scores_of_a_prompt_that_is_paused[pp1]": [
        "SchedulerLogprobResultProcessor.add_input_logprob_return_values",
    ],
    "profiler::test_chunks_as_long_as_the_context[pp2]": [
        "the PP dynamic-chunk profiler is not ready",
    ],
    "generate_grammar::test_token_that_the_grammar_refuses[first token-pp2]": [
        "the reason is {'type': 'abort', 'message': 'Aborted'",
    ],
    "dp_attention::test_requests_are_received_seldom[pp1-tp2-dp2]": [
        "hung: deadlock: ranks 0,1",
        "_broadcast_reqs_across_ranks",
    ],
    "dp_attention::TestRoomsDoNotSayWhereTheKvIs::test_request_says_it_and_is_the_first"
    "[prefill1-tp2-dp2-decode1-tp1-dp1]": ["EngineStalled", "Bootstrapping"],
    "dp_attention::TestRoomsDoNotSayWhereTheKvIs::test_one_dp_rank[prefill1-decode1]": [
        "EngineStalled",
        "Bootstrapping",
    ],
    "tensor_parallel::TestHeadsAreShared::test_by_ranks_of_prefill[prefill1-tp4-decode1-tp1]": [
        "tokens differ from the reference",
    ],
    "tensor_parallel::TestHeadsAreShared::test_by_ranks_of_decode[prefill1-tp1-decode1-tp4]": [
        "tokens differ from the reference",
    ],
}
"""By test of the suite, words of its failure."""


@pytest.fixture(scope="module")
def run(inner: Callable[..., Run]) -> Run:
    args = ["--pp-size", "2", "--pprank-device", "cpu", "--pprank-timeout", "60"]
    args += [f"--pprank-revert={revert}" for revert in REVERTS]
    tests = [f"pytest_pprank.suite.test_{test}" for test in SEEN]
    return inner("unseen", "--rootdir", ".", *args, "--pyargs", *tests)


@pytest.mark.parametrize(
    ("test", "words"), SEEN.items(), ids=[test.partition("[")[0] for test in SEEN]
)
def test_fix_that_is_taken_out_is_seen(run: Run, test: str, words: list[str]) -> None:
    failure = run.failure(test.partition("::")[2].replace("::", "."))
    for expected in words:
        assert expected in failure
