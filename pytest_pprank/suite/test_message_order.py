"""Stages send and receive in an order that needs no buffer between them.

A send of a tensor is asynchronous, but it ends by itself only as long as something keeps the
message: NCCL keeps a few for each pair of GPUs (about two between hosts), other backends none. Then
it ends when the other stage receives. Stages that all send first and receive then wait for each
other; on a fast network that takes hours to show, and with gloo it never does. So the order itself
is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_tokens_equal_reference
from pytest_pprank.suite.unbuffered import RECV, SEND, blocked, note_order, orders_of_stages

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

CHUNK = 64

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)
all_send_first = pytest.mark.pprank(known_bug="every-stage-sends-before-it-receives")


def check(orders: list[list[str]]) -> None:
    assert all({SEND, RECV} == set(order) for order in orders), "no messages were seen"
    waits = [f"stage {stage} {what}" for stage, what in blocked(orders).items()]
    assert not waits, f"stages wait for each other if nothing keeps their messages: {waits}"


@all_send_first
def test_pipeline(engine: Engine, pprank: Pprank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of several chunks, and requests that are decoded in several microbatches."""
    if pprank.num_stages == 1:
        pytest.skip("one stage has nobody to send to")
    order = note_order(engine.scheduler, monkeypatch)
    for index in range(6):
        engine.submit((9, 3 * CHUNK, 20)[index % 3], 3 + 4 * (index % 2))
        engine.step(1)
    engine.drain()
    engine.leave()
    check(orders_of_stages(pprank, order))
    assert_tokens_equal_reference(engine.results.values())


@all_send_first
@pytest.mark.pprank(prefill=2, decode=1)
def test_stages_of_prefill(disagg: Disagg, pprank: Pprank, monkeypatch: pytest.MonkeyPatch) -> None:
    order = note_order(disagg.scheduler, monkeypatch)
    for length in (9, 3 * CHUNK, 20, CHUNK + 1):
        disagg.submit(length, 3)
        disagg.step(1)
    disagg.drain()
    disagg.leave()
    orders = orders_of_stages(pprank, order)
    if pprank.role == "prefill":
        check(orders)
    assert_tokens_equal_reference(disagg.results.values())
