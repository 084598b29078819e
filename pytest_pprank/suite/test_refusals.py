"""Requests that SGLang's Scheduler refuses on arrival: they are answered, and start nowhere.

What SGLang's tokenizer refuses (another vocabulary, sampling params out of range) never reaches a
Scheduler and is not tested here. Without prefill/decode roles, a refused request may run one
forward of one token, whose result carries the answer. With the two roles it must not even begin a
handshake: each role refuses the request by itself, so a request that one role accepted would wait
for the other role, or get KV that was never computed (SGLang PR 38935).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.grammars import (
    NUMBERS,
    follows,
    needs_grammars,
    skip_where_there_are_no_grammars,
)

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Observe, Pprank, Result
    from pytest_pprank.sglang.driver.disagg_views import DisaggView

CHUNK = 64
ROLES = ("prefill", "decode")
LATEST = 40
"""Iterations per stage within which a refusal must be answered."""

in_grammar_backend = pytest.mark.sglang(grammar_backend="xgrammar")

pytestmark = [
    # SGLang logs each refusal as an error
    pytest.mark.pprank(sanitize="-logs"),
]

REFUSED = {
    "too-long": "maximum allowed length",
    "far-too-long": "maximum allowed length",
    "regex-without-backend": "grammar-backend none",
    "json-schema-without-backend": "grammar-backend none",
    "logprobs-from-beyond-its-end": "logprob_start_len",
}
"""Requests that any Scheduler here refuses, and words of its answer."""
NO_SESSION = "session id nobody does not exist"

INVALID: dict[str, dict[str, Any]] = {
    "invalid-regex": {"regex": "([0-9"},
    "invalid-json-schema": {"json_schema": '{"type": 7}'},
    "invalid-ebnf": {"ebnf": "root ::= ("},
}
"""Requests whose grammar cannot be compiled."""


def submit_refused(engine: Engine, kind: str, **more: Any) -> str:
    """Send a request of this kind of `REFUSED` and return its id."""
    longest = int(engine.scheduler.max_req_input_len)
    requests: dict[str, tuple[int, dict[str, Any]]] = {
        "too-long": (longest, {}),
        "far-too-long": (3 * longest, {}),
        "regex-without-backend": (20, {"regex": NUMBERS}),
        "json-schema-without-backend": (20, {"json_schema": "{}"}),
        "logprobs-from-beyond-its-end": (
            20,
            {"fields": {"return_logprob": True, "logprob_start_len": 30}},
        ),
    }
    prompt, options = requests[kind]
    return str(engine.submit(prompt, **options, **more))


def submit_to_no_session(engine: Engine) -> str:
    """Send a request of a session that SGLang does not know, and return its id."""
    from sglang.srt.managers.io_struct import SessionParams

    return str(engine.submit(20, fields={"session_params": SessionParams(id="nobody")}))


def check_answer(result: Result, words: str, status: int = 400) -> None:
    """Check that a request was refused, with this status and a message that contains `words`."""
    reason = result.finish_reason
    assert reason is not None, f"{result.rid} has not been answered"
    assert reason["type"] == "abort", reason
    assert reason["status_code"] == status, reason
    assert words in reason["message"], reason


class Watch:
    """Steps the loops one by one, and checks whether a stage accepts a refused request."""

    def __init__(self, disagg: Disagg, observe: Observe, pprank: Pprank) -> None:
        self._disagg, self._observe, self._pprank = disagg, observe, pprank

    def run(self, *refused: str, alone: bool, roles: tuple[str, ...] = ROLES) -> None:
        """Step until these roles have answered all of them; fails if one is accepted.

        `alone`: nothing else is under way, so no resource at all may be allocated.
        """
        disagg, after = self._disagg, 0
        stages = max(disagg.prefill_stages, disagg.decode_stages)
        for _ in range(LATEST * stages):
            disagg.step()
            found = [text for view in disagg.stages for text in self._held(view, refused, alone)]
            found += [f"{where}: {what}" for where, what in self._passed(refused, alone)]
            if found:
                shown = ", ".join(refused)
                disagg.abandon("a request that SGLang has refused is under way")
                raise AssertionError(
                    f"refused, and let in all the same ({shown}): {'; '.join(found)}"
                )
            after += all(disagg.side(r).results[rid].finished for rid in refused for r in roles)
            if after > 2 * stages:  # later stages receive it after the first one has answered
                return
        raise AssertionError(f"{', '.join(refused)}: no answer")

    def _held(self, view: DisaggView, refused: tuple[str, ...], alone: bool) -> list[str]:
        """Return, in words, where a stage has a refused request between two iterations."""
        found = [
            f"{view.place}: {rid} in {name}"
            for name, rids in view.queues.items()
            for rid in refused
            if rid in rids
        ]
        taken = {
            "KV tokens": view.kv_tokens,
            "request slots": view.request_slots,
            "metadata slots": view.metadata_slots,
            "rooms": len(view.rooms) + sum(map(len, view.reported.values())),
        }
        if alone:
            found += [f"{view.place}: {count} {name}" for name, count in taken.items() if count]
        return found

    def _passed(self, refused: tuple[str, ...], alone: bool) -> list[tuple[str, str]]:
        """Return calls of hook points on any rank since the test began, also within iterations."""
        here = [
            f"{seam} of {rid}"
            for seam in ("slot_alloc", "prepare_for_extend", "handshake")
            for call in self._observe.calls(seam)
            for rid in refused
            if rid in call.facts.rids
        ]
        anonymous = ("metadata_alloc", "kv_alloc", "transfer_send")
        here += [seam for seam in anonymous if alone and self._observe.calls(seam)]
        gathered = self._pprank.gather(here)
        return [(f"rank {rank}", what) for rank, each in enumerate(gathered) for what in each]


@pytest.fixture
def watch(disagg: Disagg, observe: Observe, pprank: Pprank) -> Watch:
    return Watch(disagg, observe, pprank)


def settle(engine: Engine, *refused: str) -> None:
    """Run until nothing is under way; check the tokens of the requests that were not refused."""
    engine.drain()
    others = [result for rid, result in engine.results.items() if rid not in refused]
    assert all(end_of(result) == "length" for result in others)
    if others:
        assert_tokens_equal_reference(others)
    assert_kv_balanced(engine.scheduler)


def check_one_token_at_most(engine: Engine, rid: str) -> None:
    """Check that at most one forward of one token was computed of a refused request."""
    extends = [
        extend
        for forward in engine.forwards
        for of, extend in zip(forward.rids, forward.extends, strict=False)
        if of == rid
    ]
    assert extends in ([], [(0, 1)]), extends
    assert sum(rid in forward.rids for forward in engine.forwards) == len(extends)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_beside_others(engine: Engine, kind: str) -> None:
    engine.submit(300, 12)
    engine.step(2)
    refused = submit_refused(engine, kind)
    engine.submit(31, 6)
    settle(engine, refused)
    check_answer(engine.results[refused], REFUSED[kind])
    check_one_token_at_most(engine, refused)


def test_session_that_is_not_there(engine: Engine) -> None:
    engine.submit(40, 6)
    refused = submit_to_no_session(engine)
    settle(engine, refused)
    check_answer(engine.results[refused], NO_SESSION)
    check_one_token_at_most(engine, refused)


def test_priority_where_there_are_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``abort_on_priority_when_disabled``."""
    monkeypatch.setattr(engine.scheduler, "abort_on_priority_when_disabled", True)
    engine.submit(40, 6)
    refused = engine.submit(30, 6, priority=5)
    settle(engine, refused)
    engine.leave()  # so that all stages have refused it
    check_answer(engine.results[refused], "priority is disabled", 503)
    assert not any(refused in forward.rids for forward in engine.forwards)


def test_queue_that_is_full(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "max_queued_requests", 2)
    rids = [engine.submit(20 + index, 5) for index in range(5)]
    settle(engine, *rids[2:])
    engine.leave()
    for rid in rids[2:]:
        check_answer(engine.results[rid], "queue is full", 503)
        assert not any(rid in forward.rids for forward in engine.forwards)


def test_more_refused_than_there_are_request_slots(engine: Engine) -> None:
    refused = []
    for index in range(12):
        refused.append(submit_refused(engine, "too-long"))
        engine.submit(20 + index, 3)
    settle(engine, *refused)
    for rid in refused:
        check_answer(engine.results[rid], REFUSED["too-long"])


class _Grammars:
    """Base of test classes for requests whose grammar cannot be compiled."""

    @pytest.fixture(autouse=True)
    def _grammars_work_here(self, pprank: Pprank) -> None:
        skip_where_there_are_no_grammars(pprank)


@in_grammar_backend
@needs_grammars[0]
@needs_grammars[1]
class TestGrammars(_Grammars):
    @pytest.mark.parametrize("kind", INVALID)
    def test_grammar_that_cannot_be_compiled(self, engine: Engine, kind: str) -> None:
        """SGLang refuses the second request from its cache of the first one's grammar."""
        engine.submit(300, 8)
        refused = [engine.submit(40, **INVALID[kind])]
        engine.run_until(lambda: engine.results[refused[0]].finished)
        refused.append(engine.submit(41, **INVALID[kind]))
        bound = engine.submit(42, 4, regex=NUMBERS)
        settle(engine, *refused, bound)
        for rid in refused:
            check_answer(engine.results[rid], "Failed to compile")
            check_one_token_at_most(engine, rid)
        assert follows(engine.results[bound].token_ids, NUMBERS)


in_disagg = pytest.mark.sglang(chunked_prefill_size=CHUNK)
known = pytest.mark.pprank(known_bug="refused-request-is-let-into-handoff")


@in_disagg
@pytest.mark.pprank(prefill=2, decode=1)
class TestDisagg:
    @known
    @pytest.mark.parametrize("kind", REFUSED)
    def test_refused_alone(self, disagg: Disagg, watch: Watch, kind: str) -> None:
        refused = submit_refused(disagg, kind)
        watch.run(refused, alone=True)
        for role in ROLES:
            check_answer(disagg.side(role).results[refused], REFUSED[kind])
        settle(disagg, refused)

    @pytest.mark.pprank(known_bug="unknown-session-ends-decode")
    def test_session_that_is_not_there(self, disagg: Disagg, watch: Watch) -> None:
        refused = submit_to_no_session(disagg)
        watch.run(refused, alone=True)
        for role in ROLES:
            check_answer(disagg.side(role).results[refused], NO_SESSION)
        settle(disagg, refused)

    def test_no_room(self, disagg: Disagg, watch: Watch) -> None:
        refused = disagg.submit(20, fields={"bootstrap_room": None})
        watch.run(refused, alone=True)
        for role in ROLES:
            check_answer(disagg.side(role).results[refused], "bootstrap room")
        settle(disagg, refused)

    def test_priority_where_there_are_none(
        self, disagg: Disagg, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(disagg.scheduler, "abort_on_priority_when_disabled", True)
        refused = disagg.submit(30, priority=5)
        watch.run(refused, alone=True)
        for role in ROLES:
            check_answer(disagg.side(role).results[refused], "priority is disabled", 503)
        settle(disagg, refused)

    @known
    @pytest.mark.parametrize("role", ROLES)
    def test_refused_by_the_only_role_that_knows_it(
        self, disagg: Disagg, watch: Watch, role: str
    ) -> None:
        """A role refuses the request without the other one."""
        refused = submit_refused(disagg, "too-long", to=role)
        watch.run(refused, alone=True, roles=(role,))
        check_answer(disagg.side(role).results[refused], REFUSED["too-long"])
        disagg.drain()
        assert_kv_balanced(disagg.scheduler)

    @known
    @pytest.mark.parametrize("state", ["transferring", "decoding"])
    def test_refused_beside_others(self, disagg: Disagg, watch: Watch, state: str) -> None:
        slow = disagg.slow_transfer(stages=[1])
        first = disagg.submit(3 * CHUNK + 1, 12)
        if state == "decoding":
            slow.release()
        disagg.run_until_state(first, state)
        disagg.step()
        refused = [submit_refused(disagg, kind) for kind in REFUSED]
        disagg.submit(31, 6)
        watch.run(*refused, alone=False)
        slow.release()
        settle(disagg, *refused)
        for rid, words in zip(refused, REFUSED.values(), strict=True):
            for role in ROLES:
                check_answer(disagg.side(role).results[rid], words)

    @known
    def test_more_refused_than_there_are_metadata_slots(self, disagg: Disagg, watch: Watch) -> None:
        slots = disagg.scheduler.req_to_metadata_buffer_idx_allocator.size
        refused = [submit_refused(disagg, "too-long") for _ in range(slots + 4)]
        disagg.submit(31, 6)
        watch.run(*refused, alone=False)
        settle(disagg, *refused)


@in_disagg
@known
@pytest.mark.pprank(prefill=2, decode=2)
def test_refused_with_two_stages_of_each_role(disagg: Disagg, watch: Watch) -> None:
    refused = [submit_refused(disagg, kind) for kind in REFUSED]
    watch.run(*refused, alone=True)
    for rid, words in zip(refused, REFUSED.values(), strict=True):
        for role in ROLES:
            check_answer(disagg.side(role).results[rid], words)
    settle(disagg, *refused)


@in_disagg
@in_grammar_backend
@needs_grammars[0]
@needs_grammars[1]
@pytest.mark.pprank(prefill=2, decode=1)
class TestGrammarsInDisagg(_Grammars):
    @known
    @pytest.mark.parametrize("kind", INVALID)
    def test_grammar_that_cannot_be_compiled(self, disagg: Disagg, watch: Watch, kind: str) -> None:
        refused = [disagg.submit(40, **INVALID[kind])]
        watch.run(*refused, alone=True)
        refused.append(disagg.submit(41, **INVALID[kind]))  # refused from SGLang's cache
        watch.run(*refused, alone=True)
        for rid in refused:
            for role in ROLES:
                check_answer(disagg.side(role).results[rid], "Failed to compile")
        disagg.submit(33, 5)
        settle(disagg, *refused)

    @known
    def test_grammar_that_is_refused_beside_others(self, disagg: Disagg, watch: Watch) -> None:
        disagg.submit(3 * CHUNK + 1, 8)
        bound = disagg.submit(30, 4, regex=NUMBERS)
        disagg.step(3)
        refused = [disagg.submit(40, **options) for options in INVALID.values()]
        watch.run(*refused, alone=False)
        settle(disagg, *refused, bound)
        assert follows(disagg.results[bound].token_ids, NUMBERS)
