"""The timeline of a test: lanes, rows, arrows, and what never met its partner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from page_scene import Rank, timeline

from pytest_pprank.oplog.file import Ledger
from pytest_pprank.oplog.read.wait_graph import explain_waits
from pytest_pprank.report.page.bands import rows
from pytest_pprank.report.page.timeline import Printed, Shown, Timeline, timeline_of
from pytest_pprank.report.page.waits import graph_of
from pytest_pprank.topology import Another, Sizes
from pytest_pprank.trace.file import FORWARD, ITERATION, PHASE, STATE, TRANSFER


@pytest.fixture
def two(tmp_path: Path) -> tuple[Rank, Rank]:
    return Rank(tmp_path, 0), Rank(tmp_path, 1)


def links(made: Timeline) -> Iterator[tuple[str, str, str]]:
    for link in made.links:
        yield link.kind, named(made, link.source), named(made, link.target)


def named(made: Timeline, number: int) -> str:
    event = made.events[number]
    return f"{event.lane}: {event.name}"


def test_nth_send_leads_to_nth_receive(two: tuple[Rank, Rank]) -> None:
    first, second = two
    for _ in range(2):
        first.complete(first.send(1))
    for _ in range(2):
        second.complete(second.recv(0))
    made = timeline(*two)
    assert list(links(made)) == [("message", "0: send to rank 1", "1: recv from rank 0")] * 2
    sent = [made.events[link.source].start for link in made.links]
    received = [made.events[link.target].start for link in made.links]
    assert sent == sorted(sent)
    assert received == sorted(received)
    assert made.unmet == []


def test_collectives_are_linked_in_the_order_of_arrival(tmp_path: Path) -> None:
    ranks = [Rank(tmp_path, rank, world=3) for rank in range(3)]
    for rank in (2, 0, 1):
        ranks[rank].complete(ranks[rank].meet())
    made = timeline(*ranks)
    names = [(source[0], target[0]) for _, source, target in links(made)]
    assert names == [("2", "0"), ("0", "1")]


def test_a_message_that_never_met_its_partner(two: tuple[Rank, Rank]) -> None:
    first, second = two
    second.complete(second.meet())
    first.complete(first.meet())
    second.recv(0)
    made = timeline(*two, until=time.monotonic())
    (missing,) = made.unmet
    assert named(made, missing.event) == "1: recv from rank 0"
    assert (missing.ranks, missing.lack) == ((0,), "rank 0 did not send")
    assert made.events[missing.event].end is None
    assert made.events[missing.event].details["state"] == "waiting"
    assert made.seconds > made.events[missing.event].start


def test_what_had_not_ended_lasts_until_the_trace_was_read(two: tuple[Rank, Rank]) -> None:
    two[0].trace.begin(PHASE, "call")
    until = time.monotonic() + 7
    made = timeline(*two, until=until)
    assert made.events[0].end is None
    assert made.seconds == pytest.approx(until - made.began)


def test_operations_of_earlier_tests_are_left_out(two: tuple[Rank, Rank]) -> None:
    first, second = two
    for rank in two:
        rank.complete(rank.meet())
        rank.trace.begin_test(2)
        rank._ledger.begin_test(2)
    first.complete(first.send(1))
    second.complete(second.recv(0))
    assert [event.kind for event in timeline(*two).events] == ["message", "message"]


def test_more_operations_than_the_ledger_keeps_are_shown(two: tuple[Rank, Rank]) -> None:
    first, second = two
    for _ in range(700):
        first.complete(first.send(1))
        second.complete(second.recv(0))
    made = timeline(*two)
    assert (len(made.events), len(made.links)) == (1400, 700)


def test_kv_leads_to_where_it_has_arrived(tmp_path: Path) -> None:
    prefill, decode = Rank(tmp_path, 0), Rank(tmp_path, 1)
    prefill.trace.event(TRANSFER, "send KV of 16 tokens", {"room": 7, "tokens": 16})
    prefill.trace.event(TRANSFER, "send KV of 4 tokens", {"room": 7, "tokens": 4})
    decode.trace.event(TRANSFER, "KV transfer: Transferring", {"room": 7, "status": "Transferring"})
    decode.trace.event(TRANSFER, "KV transfer: Success", {"room": 7, "status": "Success"})
    decode.trace.event(TRANSFER, "KV transfer: Success", {"room": 8, "status": "Success"})
    traces = {0: prefill.read(), 1: decode.read()}
    made = timeline_of(Sizes(1, 1), traces, {0: prefill.ledger(), 1: decode.ledger()})
    assert list(links(made)) == [("kv", "0: send KV of 4 tokens", "1: KV transfer: Success")]
    assert [lane.title for lane in made.lanes] == [
        "rank 0: prefill stage 0 of 1",
        "rank 1: decode stage 0 of 1",
    ]


def test_kv_of_several_instances(tmp_path: Path) -> None:
    """Each room is of one pair, whose stages send to stages of the same number."""
    more = (Another("prefill", 2, 1), Another("decode", 2, 1))
    ranks = {number: Rank(tmp_path, number) for number in range(8)}
    for room, prefill, decode in ((7, 2, 6), (8, 0, 4)):
        for stage in (0, 1):
            ranks[prefill + stage].trace.event(TRANSFER, "send", {"room": room, "tokens": 16})
            ranks[decode + stage].trace.event(TRANSFER, "done", {"room": room, "status": "Success"})
    made = timeline_of(
        Sizes(2, 2, more=more),
        {number: rank.read() for number, rank in ranks.items()},
        {number: rank.ledger() for number, rank in ranks.items()},
    )
    assert sorted(links(made)) == [
        ("kv", f"{source}: send", f"{target}: done")
        for source, target in ((0, 4), (1, 5), (2, 6), (3, 7))
    ]
    assert [lane.title for lane in made.lanes[2:5]] == [
        "rank 2: prefill 1, stage 0 of 2",
        "rank 3: prefill 1, stage 1 of 2",
        "rank 4: decode 0, stage 0 of 2",
    ]


def test_events_are_in_order_and_in_their_iterations(two: tuple[Rank, Rank]) -> None:
    first, _ = two
    loop = first.trace.begin(ITERATION, "iteration 3", iteration=3)
    forward = first.trace.begin(FORWARD, "extend a", iteration=3)
    first.trace.end(forward)
    first.trace.end(loop)
    first.trace.event(STATE, "after iteration 3", {"waiting": ["b"]}, iteration=4)
    made = timeline(*two)
    assert [(e.kind, e.iteration, e.start) for e in made.events] == sorted(
        ((e.kind, e.iteration, e.start) for e in made.events), key=lambda it: it[2]
    )
    outer, inner, state = made.events
    assert outer.end is not None
    assert inner.end is not None
    assert outer.start <= inner.start <= inner.end <= outer.end
    assert state.details == {"waiting": ["b"]}


def test_printed_lines_are_events_without_escape_sequences(two: tuple[Rank, Rank]) -> None:
    now = time.monotonic()
    said = (Printed(1, now, "stderr", "\n\x1b[31mfirst\x1b[0m\nsecond\n"), Printed(9, now, "", "x"))
    (event,) = timeline(*two, printed=said).events
    assert (event.lane, event.kind, event.name) == (1, "output", "first")
    assert event.details == {"stream": "stderr", "text": "\nfirst\nsecond\n"}


def test_a_lane_says_what_its_trace_lacks(two: tuple[Rank, Rank], tmp_path: Path) -> None:
    first, second = two
    first.trace.fault(ValueError("odd"))
    (tmp_path / "trace1.bin").unlink()
    made = timeline(first, second)
    assert [lane.note for lane in made.lanes] == [
        "1 events could not be recorded: ValueError: odd",
        "this rank has left no trace",
    ]


def test_without_any_event_there_is_an_empty_timeline(two: tuple[Rank, Rank]) -> None:
    made = timeline(*two)
    assert (made.events, made.seconds) == ([], 0.0)


def test_no_two_spans_of_a_row_overlap(two: tuple[Rank, Rank]) -> None:
    first, second = two
    pending = []
    for number in range(60):
        pending.append(first.send(1))
        if number % 3 == 2:
            first.complete(pending.pop(number % len(pending)))
    first.trace.begin(PHASE, "call")
    made = timeline(first, second, until=time.monotonic())
    by_row: dict[tuple[str, int], list[Shown]] = {}
    for event in made.events:
        by_row.setdefault((event.kind, event.row), []).append(event)
    assert len(by_row) > 3
    for events in by_row.values():
        for before, after in pairwise(events):
            assert (made.seconds if before.end is None else before.end) <= after.start


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], []),
        ([(0, 1), (1, 2), (2, 3)], [0, 0, 0]),
        ([(0, 9), (1, 2), (3, 4), (3, 5)], [0, 1, 1, 2]),
        ([(0, 9), (1, 1), (2, 2)], [0, 0, 0]),
    ],
)
def test_rows(spans: list[tuple[float, float]], expected: list[int]) -> None:
    assert rows(spans) == expected


def hang(tmp_path: Path, world: int) -> dict[int, Ledger]:
    ranks = [Rank(tmp_path, rank, world) for rank in range(world)]
    for rank in ranks:
        rank.recv((rank.rank + 1) % world)
    return {rank.rank: rank.ledger() for rank in ranks}


@pytest.mark.parametrize("world", [2, 3, 8])
def test_a_circle_of_waits_is_a_graph(tmp_path: Path, world: int) -> None:
    waits = explain_waits(hang(tmp_path, world), {})
    graph = graph_of(waits, dict.fromkeys(range(world), "call"))
    assert graph is not None
    assert [(e.source, e.target) for e in graph.edges] == [
        (rank, (rank + 1) % world) for rank in range(world)
    ]
    assert all(node.stuck and node.waits and node.place == "call" for node in graph.nodes)
    assert len({(node.x, node.y) for node in graph.nodes}) == world
    left, top, width, height = map(float, graph.box.split())
    for node in graph.nodes:
        assert left + 24 <= node.x <= left + width - 24
        assert top + 24 <= node.y <= top + height - 24
    assert graph.waits[0].text == (
        "rank 0 waits in recv from rank 1 (test_it.py:20 in test_it, float32[4], 16 B, default "
        "group)"
    )
    assert any(line.startswith("deadlock: ") for line in graph.lines)


def test_a_rank_that_is_gone_is_in_the_graph(tmp_path: Path) -> None:
    first, second = Rank(tmp_path, 0), Rank(tmp_path, 1)
    first.recv(1)
    ledgers = {0: first.ledger(), 1: second.ledger()}
    places = {0: "call", 1: "passed in call"}
    graph = graph_of(explain_waits(ledgers, {1: "passed in call"}), places)
    assert graph is not None
    waiting, gone = graph.nodes
    assert (waiting.waits, waiting.stuck) == (True, True)
    assert (gone.waits, gone.place) == (False, "passed in call")


def test_without_a_wait_there_is_no_graph(two: tuple[Rank, Rank]) -> None:
    ledgers = {rank.rank: rank.ledger() for rank in two}
    assert graph_of(explain_waits(ledgers, {}), {}) is None
