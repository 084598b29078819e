"""What each sanitizer finds in made-up events; for kv see test_kv_events.py."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from pytest_pprank.checks import consensus_compare
from pytest_pprank.checks.base import Watch
from pytest_pprank.checks.consensus import Consensus
from pytest_pprank.checks.experts import Experts
from pytest_pprank.checks.forward import Forward
from pytest_pprank.checks.h2d import H2D
from pytest_pprank.checks.liveness import PATIENCE, Liveness
from pytest_pprank.checks.logs import Logs
from pytest_pprank.errors import SeamMissing
from pytest_pprank.sglang.events.types import (
    BatchResult,
    BatchScheduled,
    ConsensusApplied,
    ConsensusBrought,
    ConsensusLocal,
    ExpertsRan,
    ForwardContents,
    ForwardEntry,
    ForwardMade,
    HandshakesDone,
    HostTensor,
    LastToken,
    Origin,
    Pending,
    Quiescent,
    WrongRow,
)
from pytest_pprank.sglang.events.types import Forward as Ran

NOTHING_LEFT = Quiescent(problems=list, sent=list, leftovers=list)


def _entries(*, tokens: int, requests: int) -> dict[str, int]:
    per_token = dict.fromkeys(("input_ids", "positions", "out_cache_loc"), tokens)
    return {**per_token, **dict.fromkeys(("seq_lens", "req_pool_indices"), requests)}


# two requests of 4 and 3 tokens, of which the first one has 1 already; KV tokens are 10, 11, ...
EXTEND = ForwardEntry(
    mode="extend",
    extend=True,
    rids=("a", "b"),
    sizes={
        "input_ids": 6,
        "positions": 6,
        "out_cache_loc": 6,
        "seq_lens": 2,
        "req_pool_indices": 2,
    },
    origin=Origin(("a", "b"), (3, 3), "extend"),
    contents=ForwardContents(
        input_ids=(1, 2, 3, 4, 5, 6),
        positions=(1, 2, 3, 0, 1, 2),
        seq_lens=(4, 3),
        written=(11, 12, 13, 20, 21, 22),
        rows=((10, 11, 12, 13), (20, 21, 22)),
    ),
    iteration=0,
)
DECODE = ForwardEntry(
    mode="decode",
    rids=("a", "b"),
    sizes={
        "input_ids": 2,
        "positions": 2,
        "out_cache_loc": 2,
        "seq_lens": 2,
        "req_pool_indices": 2,
    },
    origin=Origin(("a", "b"), (1, 1), "decode", last=(LastToken(5, 77), LastToken(4, 88))),
    contents=ForwardContents(
        input_ids=(77, 88),
        positions=(4, 3),
        seq_lens=(5, 4),
        written=(14, 23),
        rows=((10, 11, 12, 13, 14), (20, 21, 22, 23)),
    ),
    iteration=3,
)


def _origin(entry: ForwardEntry, **changes: Any) -> ForwardEntry:
    assert entry.origin is not None
    return replace(entry, origin=replace(entry.origin, **changes))


def _contents(entry: ForwardEntry, **changes: Any) -> ForwardEntry:
    assert entry.contents is not None
    return replace(entry, contents=replace(entry.contents, **changes))


def _sizes(entry: ForwardEntry, **changes: int) -> ForwardEntry:
    return replace(entry, sizes={**entry.sizes, **changes})


class TestForward:
    @pytest.mark.parametrize(
        "entry",
        [
            EXTEND,
            DECODE,
            _contents(DECODE, positions=None),
            replace(EXTEND, contents=None),
            replace(EXTEND, origin=None, sizes={}),
            # not checked: no request, drafts that are verified
            replace(EXTEND, mode="idle", extend=False, problems=("x",)),
            replace(EXTEND, mode="target_verify", extend=False, sizes={}),
            # with overlap scheduling the host does not know the last token yet
            _contents(_origin(DECODE, last=(), overlap=True), input_ids=(0, 0)),
        ],
    )
    def test_sound(self, watched: Any, entry: ForwardEntry) -> None:
        watch = watched(Forward)
        watch.emit("forward", entry)
        assert watch.lines == []

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (
                replace(EXTEND, problems=("ForwardBatch.input_ids: found None", "and another")),
                ["ForwardBatch.input_ids: found None", "and another"],
            ),
            (_origin(EXTEND, rids=("a", "a")), ["a request is in the batch twice: a, a"]),
            (
                _sizes(EXTEND, positions=5),
                ["positions has 5 entries, the requests' lengths are [3, 3]"],
            ),
            (_sizes(EXTEND, seq_lens=3), ["seq_lens has 3 entries for 2 requests"]),
            (_sizes(EXTEND, req_pool_indices=1), ["req_pool_indices has 1 entries for 2 requests"]),
            (
                _contents(EXTEND, positions=(0, 1, 2, 0, 1, 2)),
                ["positions of a are [0, 1, 2], not [1, 2, 3]"],
            ),
            (
                _contents(EXTEND, written=(11, 12, 13, 20, 22, 21)),
                [
                    "out_cache_loc of b is [20, 22, 21], its row of req_to_token has [20, 21, 22]",
                ],
            ),
        ],
    )
    def test_extend(self, watched: Any, entry: ForwardEntry, words: list[str]) -> None:
        watch = watched(Forward)
        watch.emit("forward", entry)
        assert watch.lines == [f"a extend enters the model: {text}" for text in words]
        assert watch.found[0].stack
        assert watch.found[0].cure.startswith("look where the batch was prepared")

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (_contents(DECODE, input_ids=(77, 89)), "input_ids of b is 89, its last token is 88"),
            (
                _origin(DECODE, last=(LastToken(6, 77), LastToken(4, 88))),
                "seq_lens of a is 5, it has 6 tokens",
            ),
        ],
    )
    def test_decode(self, watched: Any, entry: ForwardEntry, words: str) -> None:
        watch = watched(Forward)
        watch.emit("forward", entry)
        assert watch.lines == [f"a decode enters the model: {words}"]

    def test_one_request_in_two_microbatches(self, watched: Any) -> None:
        watch = watched(Forward)
        watch.emit("forward", EXTEND)
        watch.emit("forward", DECODE)
        assert watch.lines == [
            f"a decode enters the model: {rid} is in another microbatch, whose result is awaited: "
            "extend"
            for rid in "ab"
        ]

    @pytest.mark.parametrize(
        "between",
        [
            lambda watch: watch.emit("batch_result", BatchResult(("a", "b"))),
            lambda watch: watch.sanitizer.quiescent(NOTHING_LEFT),
        ],
    )
    def test_one_microbatch_after_the_other(self, watched: Any, between: Any) -> None:
        watch = watched(Forward)
        watch.emit("forward", EXTEND)
        between(watch)
        watch.emit("forward", DECODE)
        assert watch.lines == []

    @pytest.mark.parametrize("change", [{"iteration": None}, {"overlap": True}])
    def test_forwards_without_a_result_that_is_awaited(self, watched: Any, change: Any) -> None:
        watch = watched(Forward)
        for entry in (EXTEND, DECODE):
            overlap = _origin(entry, **change) if "overlap" in change else replace(entry, **change)
            watch.emit("forward", overlap)
        assert watch.lines == []


class TestExperts:
    LEFT_OUT = tuple(WrongRow(token, (2,), nothing=True) for token in (0, 1, 5))
    OTHER = (WrongRow(7, (2, 3), nothing=False),)

    def test_rank_that_has_all_experts_is_not_watched(self, watched: Any) -> None:
        assert watched(Experts, ep_size=1).listeners == {}

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ((), []),
            (LEFT_OUT, ["leave out 3 of 9 tokens of the batch (0-2, 5-6), which have chosen 2"]),
            (
                (*LEFT_OUT, *OTHER),
                [
                    "leave out 3 of 9 tokens of the batch (0-2, 5-6), which have chosen 2",
                    "do not give what their weights make of 1 of 9 tokens of the batch (7-8), "
                    "which have chosen 2, 3",
                ],
            ),
            (
                (WrongRow(0, (), nothing=False),),
                [
                    "do not give what their weights make of 1 of 9 tokens of the batch (0-1), "
                    "which have chosen none of them"
                ],
            ),
        ],
        ids=["none", "left out", "both", "not chosen"],
    )
    def test_wrong_tokens(self, watched: Any, wrong: tuple[WrongRow, ...], said: list[str]) -> None:
        watch = watched(Experts, ep_size=2)
        watch.emit("experts", ExpertsRan(1, range(2, 4), 9, wrong))
        assert watch.lines == [f"layer 1: this rank's experts 2 to 3 {text}" for text in said]


class TestLiveness:
    ROOM = BatchScheduled((Pending("a", 40),), 2, 90, 100, 3)

    def _lines(self, watched: Any, event: BatchScheduled, turns: int) -> list[str]:
        watch = watched(Liveness)
        for _ in range(turns):
            watch.emit("schedule", event)
        lines: list[str] = watch.lines
        return lines

    def test_starving_request(self, watched: Any) -> None:
        assert self._lines(watched, self.ROOM, 2 * PATIENCE - 1) == []
        assert self._lines(watched, self.ROOM, 2 * PATIENCE + 9) == [
            "a has not been in a forward for 128 iterations, and there is room: 90 KV tokens and "
            "3 request slots are free"
        ]

    @pytest.mark.parametrize(
        "change",
        [
            {"pending": ()},
            {"free_request_slots": 0},
            {"free_tokens": 80},
            {"total_tokens": 180},
        ],
        ids=lambda change: "".join(change),
    )
    def test_no_room(self, watched: Any, change: dict[str, Any]) -> None:
        assert self._lines(watched, replace(self.ROOM, **change), 3 * PATIENCE) == []

    def test_request_that_had_its_forward(self, watched: Any) -> None:
        watch = watched(Liveness)
        for _ in range(3):
            for _ in range(2 * PATIENCE - 1):
                watch.emit("schedule", self.ROOM)
            watch.emit("init_new", ForwardMade(Ran(0, "extend", ("a",))))
        assert watch.lines == []


class TestConsensus:
    def _ran(self, watched: Any, stage: int, *forwards: ForwardMade) -> Any:
        watch = watched(Consensus, stage=stage)
        for forward in forwards:
            watch.emit("init_new", forward)
        return watch.sanitizer.evidence()

    def test_stages_that_run_the_same(self, watched: Any) -> None:
        extend, decode = (ForwardMade(Ran(0, mode, ("a",)), 0) for mode in ("extend", "decode"))
        profiler = replace(extend, iteration=None)
        evidence = {
            rank: self._ran(watched, rank, *forwards)
            for rank, forwards in enumerate([(extend, decode), (profiler, extend, decode)])
        }
        assert list(consensus_compare.compare(evidence)) == []
        evidence[1] = self._ran(watched, 1, extend, decode, decode)
        (finding,) = consensus_compare.compare(evidence)
        assert "  stage 1: 3 forwards, the last one decode of a" in finding.text

    @pytest.mark.parametrize(
        ("ready", "contributed", "words"),
        [
            ({"a", "b"}, ("a",), []),
            ({"a"}, None, []),
            (
                {"a"},
                ("a", "c", "b"),
                ["this stage brings b, c as ready, and is not ready for it: its own are a"],
            ),
            (
                (),
                ("b",),
                ["this stage brings b as ready, and is not ready for it: its own are none"],
            ),
        ],
    )
    def test_bring(self, watched: Any, ready: Any, contributed: Any, words: list[str]) -> None:
        watch = watched(Consensus)
        watch.emit("consensus_bring", ConsensusBrought(("unasked",)))
        watch.emit("consensus_local", ConsensusLocal(frozenset(ready)))
        watch.emit("consensus_bring", ConsensusBrought(contributed))
        assert watch.lines == words

    @pytest.mark.parametrize(
        ("stage", "event", "wrong"),
        [
            (1, ConsensusApplied(("a", "b"), ("b", "a"), tells_failed=True), ""),
            (1, ConsensusApplied(("a", "b"), ("a",), tells_failed=True), "b"),
            (1, ConsensusApplied(("a", "b"), ("a",)), ""),
            (1, ConsensusApplied(("a",), ("a", "c"), tells_failed=True), "c"),
            (0, ConsensusApplied(("a",), ("a", "c")), "c"),
            # no room for it, and nothing to do
            (0, ConsensusApplied(("a", "b"), ("a",), tells_failed=True), ""),
            (1, ConsensusApplied(None, None), ""),
            (1, ConsensusApplied(("a",), None), ""),
        ],
    )
    def test_apply(self, watched: Any, stage: int, event: ConsensusApplied, wrong: str) -> None:
        watch = watched(Consensus, stage=stage)
        watch.emit("consensus_apply", event)
        applied = f"received {sorted(event.received or ())}, applied {sorted(event.applied or ())}"
        words = f"consensus received and applied differ in {wrong}: {applied}"
        assert watch.lines == ([words] if wrong else [])

    @pytest.mark.parametrize(
        ("event", "wrong"),
        [
            (HandshakesDone(("a",), {"a": "WaitingForInput"}), ""),
            # it has failed since all agreed to start it: all start it
            (HandshakesDone(("a",), {"a": "Failed"}), ""),
            (HandshakesDone(("a", "b"), {"a": "Success", "b": "Bootstrapping"}), "b"),
            (HandshakesDone(("b",), {"b": "Bootstrapping"}, early=frozenset("b")), ""),
            (HandshakesDone((), {}), ""),
        ],
    )
    def test_start(self, watched: Any, event: HandshakesDone, wrong: str) -> None:
        watch = watched(Consensus, stage=1, role="prefill", instance="prefill")
        watch.emit("handshake", event)
        words = f"this stage starts {wrong} as ready, and is not ready for it: its room is "
        assert watch.lines == ([f"{words}Bootstrapping"] if wrong else [])


class TestOff:
    """A check is off if this SGLang lacks something it needs; it says why, and finds nothing."""

    def test_it_is_off_and_makes_no_finding(self, watched: Any) -> None:
        watch = watched(Liveness)

        def lacks() -> None:
            raise SeamMissing("SGLang 9.9 has no x")

        watch.guard(lacks)
        assert watch.off == "SGLang 9.9 has no x"
        assert watch.lines == []
        watch.guard(lambda: 1 / 0)  # later errors are ignored
        assert watch.lines == []

    def test_a_hook_that_the_row_does_not_name_is_refused(self) -> None:
        watch = Watch("liveness", None, lambda _: None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"'lock' is not among the hooks of .* 'liveness'"):
            watch.listen("lock", lambda _: None)


class TestH2D:
    @pytest.fixture(autouse=True)
    def _runner_is_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "sglang.srt.model_executor.model_runner"
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    def test_host_tensor(self, watched: Any) -> None:
        watch = watched(H2D)
        watch.emit("forward", replace(EXTEND, on_host=(HostTensor("x.ids", "a host tensor"),)))
        assert watch.lines == ["a host tensor enters the model: x.ids is a host tensor"]

    def test_all_is_on_its_device(self, watched: Any) -> None:
        watch = watched(H2D)
        watch.emit("forward", EXTEND)
        assert watch.lines == []

    def test_nothing_to_listen_to_without_sglang(self, watched: Any) -> None:
        del sys.modules["sglang.srt.model_executor.model_runner"]
        assert watched(H2D).listeners == {}


class TestLogs:
    LOG = logging.getLogger("sglang.srt.somewhere")

    @pytest.fixture(autouse=True)
    def _quiet(self) -> Iterator[None]:
        self.LOG.setLevel(logging.DEBUG)
        yield
        self.LOG.setLevel(logging.NOTSET)

    @pytest.mark.parametrize(
        ("level", "text", "found"),
        [
            (logging.WARNING, "Failed to profile %s", True),
            (logging.INFO, "Dynamic chunking will be disabled %s", True),
            (logging.ERROR, "nothing %s", True),
            (logging.WARNING, "CUDA graph is disabled %s", False),
            (logging.WARNING, "Failed to import %s", False),
            (logging.DEBUG, "Failed to %s", False),
        ],
    )
    def test_records(self, watched: Any, level: int, text: str, found: bool) -> None:
        watch = watched(Logs)
        self.LOG.log(level, text, "x")
        name = logging.getLevelName(level)
        said = f"SGLang logged at level {name}: {text}" % "x"
        assert watch.lines == ([said] if found else [])
        assert all(f.stack[0].startswith("test_sanitizers_events.py:") for f in watch.found)

    def test_caught_traceback(self, watched: Any) -> None:
        watch = watched(Logs)
        try:
            int("nothing")
        except ValueError:
            self.LOG.warning("never mind")
            assert watch.found == []
            self.LOG.warning("never mind", exc_info=True)
        (finding,) = watch.found
        assert "while handling ValueError: invalid literal" in finding.text
        assert "in test_caught_traceback" in finding.stack[1]

    def test_record_that_cannot_be_read(
        self, watched: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The user sees the error, SGLang does not."""
        monkeypatch.setattr(logging.getLogger("sglang"), "propagate", False)
        watch = watched(Logs)
        self.LOG.warning("%d", "no number")
        assert "the sanitizer itself failed (TypeError:" in watch.lines[0]

    def test_it_ends(self, watched: Any) -> None:
        watch = watched(Logs)
        watch.close()
        self.LOG.error("too late")
        assert watch.found == []
