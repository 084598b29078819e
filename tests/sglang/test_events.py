"""Decoded events of real requests through the loops of all stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank.checks.base import Watch
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.sglang.compat.consensus import by_store
from pytest_pprank.sglang.events import hooks  # noqa: F401  (its table registers itself)
from pytest_pprank.sglang.events.hook_points import hook_points
from pytest_pprank.sglang.events.types import Event, Message

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank

Events = list[tuple[str, Any]]
"""Names of hook points and their events; each hook point has one type of event."""


class Everywhere(Watch):
    """Listens at any hook point, not only at those that its row names."""

    def _check_declared(self, seam: str) -> None:
        hook_points.point(seam)


@pytest.fixture
def listen(pprank: Pprank) -> Iterator[Callable[..., Events]]:
    """Return a function that begins to listen, and returns the growing list of (name, event)."""
    found: list[Finding] = []
    watch, again = (Everywhere("kv", pprank, found.append) for _ in range(2))
    events: Events = []
    twice: list[Event] = []

    def note(seam: str, event: Event) -> None:
        events.append((seam, event))

    def begin(*seams: str) -> Events:
        for seam in seams or hook_points.names:
            watch.listen(seam, partial(note, seam))
            again.listen(seam, twice.append)
        return events

    yield begin
    watch.close()
    again.close()
    assert found == []
    for (_, first), second in zip(events, twice, strict=True):
        # the ledger notifies each listener separately
        assert first == second if isinstance(first, Message) else first is second


def _of(events: Events, *seams: str) -> list[Any]:
    return [event for seam, event in events if seam in seams]


@pytest.mark.pprank(sanitize="none")
def test_one_request(listen: Callable[..., Events], engine: Engine, pprank: Pprank) -> None:
    events = listen()
    engine.generate([[*range(10, 30)]], max_new_tokens=2)
    extend, decode = _of(events, "prepare_for_extend", "prepare_for_decode")
    assert (extend.rids, extend.lengths, decode.lengths) == (("req-000",), (20,), (1,))
    first, second = _of(events, "kv_alloc")
    assert list(first.tokens) == list(extend.tokens)
    assert list(second.tokens) == list(decode.tokens)
    assert first.pool.size == engine.scheduler.token_to_kv_pool_allocator.size
    assert first.rid == "", "the batch is still being prepared"
    assert "prepare_for_extend" in [site.function for site in first.stack]
    assert [event.rids for event in _of(events, "slot_alloc")] == [("req-000",)]
    made = [(str(event.forward), event.iteration) for event in _of(events, "init_new")]
    assert made[0] == ("extend of req-000 (tokens 0-20)", 0)
    assert made[1][0] == "decode of req-000"
    entry, later = _of(events, "forward")
    assert (entry.mode, entry.extend, entry.decode, entry.rids) == (
        "extend", True, False, ("req-000",)
    )  # fmt: skip
    assert entry.problems == ()
    assert set(entry.sizes.items()) >= {("input_ids", 20), ("seq_lens", 1), ("positions", 20)}
    assert (entry.origin.rids, entry.origin.lengths, entry.origin.last) == (("req-000",), (20,), ())
    assert list(entry.contents.input_ids) == [*range(10, 30)]
    assert list(entry.contents.positions) == [*range(20)]
    assert entry.contents.rows == (list(first.tokens),)
    assert list(entry.contents.written) == list(first.tokens)
    assert (later.extend, later.decode, later.origin.lengths) == (False, True, (1,))
    assert [known.count for known in later.origin.last] == list(later.contents.seq_lens) == [21]
    assert [known.token for known in later.origin.last] == list(later.contents.input_ids)
    assert [*entry.contents.rows[0], *later.contents.written] == later.contents.rows[0]
    assert [event.rids for event in _of(events, "batch_result")] == [("req-000",)] * 2
    (freed,) = _of(events, "slot_free")
    assert (freed.rid, freed.tokens) == ("req-000", 21)
    scheduled = _of(events, "schedule")
    assert {event.slots for event in scheduled} == {pprank.num_stages}
    assert {request.most_tokens for event in scheduled for request in event.pending} == {22}
    assert scheduled[-1].free_request_slots == engine.scheduler.req_to_token_pool.available_size()


@pytest.mark.pprank(sanitize="none")
def test_tokens(listen: Callable[..., Events], scheduler: Any) -> None:
    events = listen("kv_alloc", "kv_free", "kv_clear")
    allocator = scheduler.token_to_kv_pool_allocator
    for seam in ("kv_alloc", "kv_free"):
        free: list[set[int]] = []

        def note(call: Any, to: list[set[int]] = free) -> None:
            to.append({*call.event.pool.free()})

        end = hook_points.listen(seam, note)
        tokens = allocator.alloc(3)
        allocator.free(tokens)
        end()
        taken, freed = [event for _, event in events[-2:]]
        assert list(taken.tokens) == list(freed.tokens) == tokens.tolist()
        (now,) = free
        assert len(now) == allocator.size - 3, "taken, and not given back yet"
        assert not now & {*tokens.tolist()}
    allocator.free_group_begin()
    allocator.free(allocator.alloc(2))
    allocator.free_group_end()
    allocator.clear()
    *_, collected, together, cleared = [event for _, event in events]
    assert (collected.pool, len(together.tokens)) == (None, 2)
    assert cleared.pool == taken.pool.key


@pytest.mark.pprank(sanitize="none")
def test_keys_and_values_of_a_request(listen: Callable[..., Events], engine: Engine) -> None:
    events = listen("forward")
    engine.generate([8], max_new_tokens=1)
    reader = _of(events, "forward")[0].kv
    tokens = _of(events, "forward")[0].contents.rows[0]
    pool = engine.scheduler.tp_worker.model_runner.token_to_kv_pool
    assert reader.first_layer == pool.start_layer
    slot = int(engine.scheduler.req_to_token_pool.req_to_token[:, 0].tolist().index(tokens[0]))
    layers = reader.read(slot, 8)
    assert len(layers) == len(pool.k_buffer)
    assert (layers[0][0] == pool.k_buffer[0][tokens].float().numpy()).all()
    assert reader.bytes_per_token * 8 == sum(k.nbytes + v.nbytes for k, v in layers)


@pytest.mark.pprank(sanitize="none")
def test_batch_that_is_not_sound(listen: Callable[..., Events], engine: Engine) -> None:
    events = listen("forward")  # the origin of the batch is recorded all the same

    def change(batch: Any) -> None:
        batch.seq_lens_cpu = batch.seq_lens_cpu - 1

    engine.on_forward(change)
    engine.generate([8], max_new_tokens=1)
    (entry,) = _of(events, "forward")
    assert "ForwardBatch.seq_lens_cpu: found [7] (1 values)" in entry.problems[0]
    assert entry.origin.rids == ("req-000",)


@pytest.mark.pprank(sanitize="none")
def test_messages_between_stages(
    listen: Callable[..., Events], engine: Engine, pprank: Pprank
) -> None:
    events = listen("p2p_send", "p2p_recv")
    engine.generate([8], max_new_tokens=1)
    engine.leave()
    messages = [
        [(event.group, event.peer, event.nbytes, event.shapes) for event in _of(events, seam)]
        for seam in ("p2p_send", "p2p_recv")
    ]
    sent, received = pprank.gather(messages)[0]
    assert {peer for _, peer, _, _ in sent + received} == {1}
    assert all(shapes for *_, shapes in sent)


@pytest.mark.pprank(prefill=2, decode=1, sanitize="none")
def test_transfer(listen: Callable[..., Events], disagg: Disagg, pprank: Pprank) -> None:
    events = listen()
    disagg.generate([20], max_new_tokens=2)
    metadata = _of(events, "metadata_alloc")
    assert [event.rid for event in metadata] == [*disagg.results]
    assert [event.slot for event in _of(events, "metadata_free")] == [metadata[0].slot]
    polls = _of(events, "transfer_poll")
    (room,) = {event.room for event in polls}
    assert room > 0
    assert polls[-1].status == "Success"
    sent = _of(events, "transfer_send")
    assert sum(event.tokens for event in sent) == (20 if pprank.role == "prefill" else 0)
    assert {event.room for event in sent} <= {room}
    if pprank.role == "decode":
        return
    rid = next(iter(disagg.results))
    local, contributed = _of(events, "consensus_local"), _of(events, "consensus_bring")
    assert {rid} in [event.ready for event in local]
    assert (rid,) in [event.ready for event in contributed]
    applied = _of(events, "consensus_apply")
    if by_store():
        assert applied == [], "prefill's handshakes are not agreed on by a ring"
        return
    assert ((rid,), (rid,)) in [(event.received, event.applied) for event in applied]
    assert all(event.tells_failed for event in applied if event.applied)


@pytest.mark.pprank(prefill=2, decode=1, sanitize="none")
def test_quiescent(disagg: Disagg, scheduler: Any, pprank: Pprank) -> None:
    from pytest_pprank.sglang.events.quiescent import quiescent

    disagg.generate([20], max_new_tokens=2)
    disagg.leave()
    left = quiescent(scheduler)
    assert left.problems() == []
    prompts = [(prompt.rid, prompt.tokens) for prompt in left.sent()]
    assert prompts == ([(rid, 20) for rid in disagg.results] if pprank.role == "prefill" else [])
