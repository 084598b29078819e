"""Which tests of the stock suite hold with DP ranks (``--dp-size``); the others are skipped.

Most tests submit a few requests and look on every rank at what became of all of them, or at what
this rank runs. DP ranks have requests of their own: half of them are on another one. What is about
DP ranks is in test_dp_attention.py, which says itself how many there are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.markers import read_rank_mark
from pytest_pprank.topology import SIZE_FIXTURE, Sizes

REASON = (
    "with DP ranks (--dp-size) not all ranks of a stage have the same requests, as this test "
    "assumes; see test_dp_attention.py"
)
HOLDS: dict[str, frozenset[str]] = {
    "test_agreement": frozenset(),
    "test_batches": frozenset(),
    "test_control": frozenset({"test_flush_is_refused_while_requests_run"}),
    "test_generate": frozenset(
        {
            "test_prefix_of_a_request_that_still_runs",
            "test_prefix_that_is_cached",
            "test_requests_that_push_others_aside",
        }
    ),
    "test_generate_aborts": frozenset({"test_request_that_waits_for_its_turn"}),
    "test_generate_chunks": frozenset(
        {
            "test_chunked_prompt",
            "test_chunks_of_a_prompt_whose_beginning_is_cached",
            "test_pages_that_are_cached",
        }
    ),
    "test_materialize": frozenset(),
    "test_message_order": frozenset(),
    "test_profiler": frozenset(),
    "test_startup": frozenset(),
}
"""The files whose tests hold with DP ranks, and those of their tests that do not."""


@pytest.hookimpl(tryfirst=True)  # before tests are planned: what is skipped needs no ranks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that get DP ranks from the command line and do not hold with them."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not _holds(item):
            item.add_marker(pytest.mark.skip(reason=REASON))


def _holds(item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    size: Sizes | None = params.get(SIZE_FIXTURE)
    if size is None or all(role.shares.dp == 1 for role in size.roles) or _says_it_itself(item):
        return True
    excepted = HOLDS.get(item.path.stem)
    return excepted is not None and getattr(item, "originalname", item.name) not in excepted


def _says_it_itself(item: pytest.Item) -> bool:
    """Return whether a test's markers, not the command line, say how many DP ranks there are."""
    mark = read_rank_mark(item)
    roles = [stages for each in (mark.prefill, mark.decode) for one in each or () for stages in one]
    return bool(mark.dp or mark.tp) or any(stages.dp or stages.tp for stages in roles)
