"""The tables of control requests are complete for the SGLang that is installed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_pprank.suite import controls

if TYPE_CHECKING:
    from pytest_pprank import Engine

PROMPTS = {
    "AbortReq",
    "BatchTokenizedEmbeddingReqInput",
    "BatchTokenizedGenerateReqInput",
    "TokenizedEmbeddingReqInput",
    "TokenizedGenerateReqInput",
}
"""Messages that are no control requests."""


def test_all_that_the_scheduler_handles_is_known(engine: Engine) -> None:
    from pytest_pprank.sglang.compat.messages import handled_requests
    from pytest_pprank.sglang.driver.control_requests import KINDS

    known = {kind.request for kind in KINDS.values()}
    assert handled_requests(engine.scheduler) - known == PROMPTS


def test_the_suite_has_each_kind_in_one_table() -> None:
    from pytest_pprank.sglang.driver.control_requests import KINDS

    sent = (controls.EVER, controls.SOMETIMES, controls.OFF)
    tables = (*sent, controls.TESTED_ELSEWHERE, controls.NOT_SENT)
    named = Counter(name for table in tables for name in table)
    assert named == Counter(list(KINDS))
