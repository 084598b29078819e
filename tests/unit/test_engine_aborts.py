"""Which forwards an aborted request may still have, and which finish reasons may follow another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank.sglang.driver.aborts import AbortLost, AbortWatch
from pytest_pprank.sglang.driver.messages import Result
from pytest_pprank.sglang.driver.pauses import PauseWatch, WorkedWhilePaused
from pytest_pprank.sglang.driver.reasons import ReasonChanged, ReasonWatch, check_reasons
from pytest_pprank.sglang.driver.views import StageView
from pytest_pprank.sglang.events.types import Forward

PROMPT = 64


def view(
    iterations: int = 0,
    *,
    waiting: tuple[str, ...] = (),
    stage: int = 0,
    ending: tuple[str, ...] = (),
) -> StageView:
    return StageView(stage, iterations, waiting, None, ((), ()), (), 0, 0, ending=ending)


def watch(*, since: int, in_time: bool = True) -> tuple[AbortWatch, Result]:
    result = Result("a", tuple(range(PROMPT)), {}, "")
    watch = AbortWatch()
    watch.note("pp", [result], [view()], since, in_time)
    return watch, result


def decode(iteration: int) -> Forward:
    return Forward(iteration, "decode", ("a",))


def extend(iteration: int, start: int, end: int, rid: str = "a") -> Forward:
    return Forward(iteration, "extend", (rid,), ((start, end),))


@pytest.mark.parametrize(
    "forwards",
    [
        [decode(8), decode(9)],  # before the abort has arrived
        [decode(10)],  # the slot whose turn it was
        [decode(11)],
        [extend(10, 0, 9, "b"), extend(12, 0, 9, "b"), decode(14)],  # prompts of others came first
    ],
)
def test_what_it_may_still_run(forwards: list[Forward]) -> None:
    aborts, _ = watch(since=10)
    aborts.ran("pp", view(21), forwards)
    aborts.ran("prefill", view(21), [decode(30), decode(32)])


@pytest.mark.parametrize(
    "forward",
    [
        extend(20, 0, 1),  # the one token of a request that waited for its grammar
        extend(20, 0, PROMPT + 3),  # recomputed after a retraction
        decode(20),  # the same on decode, which has kept its KV
    ],
)
def test_what_ends_it_late(forward: Forward) -> None:
    aborts, _ = watch(since=10)
    aborts.ran("pp", view(40, waiting=("a",), ending=("a",)), [forward])
    aborts, _ = watch(since=10)
    with pytest.raises(AbortLost, match="in iteration 20"):
        aborts.ran("pp", view(21), [forward])


@pytest.mark.parametrize(
    ("forwards", "words"),
    [
        ([decode(10), decode(12)], "decode in iteration 10, decode in iteration 12"),
        ([decode(12)], "stage 1 has begun since: decode in iteration 12"),
        ([extend(11, 0, 9, "b"), decode(12)], "decode in iteration 12"),  # of another slot
        ([extend(10, 8, 16), extend(11, 16, 24)], "extend in iteration 10 (tokens 8-16), "),
        ([extend(12, 56, 64)], "extend in iteration 12"),
        ([extend(20, 0, 64)], "extend in iteration 20"),
    ],
)
def test_what_it_may_not_run(forwards: list[Forward], words: str) -> None:
    aborts, _ = watch(since=10)
    with pytest.raises(AbortLost) as error:
        aborts.ran("pp", view(30, stage=1), forwards)
    assert "the abort of a was lost, or is late: it arrived in iteration 10" in str(error.value)
    assert words in str(error.value)
    aborts.ran("pp", view(30), forwards)  # it is reported once


def test_stages_are_counted_each_by_itself() -> None:
    aborts, _ = watch(since=10)
    aborts.ran("pp", view(12), [decode(10)])
    aborts.ran("pp", view(11, stage=1), [decode(10)])


def test_rest_of_a_prompt_that_is_allowed() -> None:
    aborts, _ = watch(since=10, in_time=False)
    aborts.ran("pp", view(20), [extend(12, 8, 16), extend(14, 16, 64)])
    with pytest.raises(AbortLost, match="decode in iteration 16"):
        aborts.ran("pp", view(20), [decode(16)])


def test_request_that_stays_in_a_queue() -> None:
    aborts, _ = watch(since=10)
    aborts.ran("pp", view(18, waiting=("a",)), [])
    with pytest.raises(AbortLost, match="still there 9 iterations later: stage 0: the waiting"):
        aborts.ran("pp", view(19, waiting=("a",)), [])


def test_other_reason_than_the_abort() -> None:
    aborts, result = watch(since=10)
    result.finish_reason = {"type": "abort"}
    aborts.ended("pp", result)
    result.finish_reason = {"type": "length"}
    with pytest.raises(AbortLost, match="it has finished by 'length'"):
        aborts.ended("pp", result)


class FINISH_ABORT: ...


class FINISH_LENGTH: ...


def test_reason_that_is_overwritten_while_it_is_held_and_when_it_has_gone() -> None:
    held: Any = SimpleNamespace(rid="held", finished_reason=None)
    gone: Any = SimpleNamespace(rid="gone", finished_reason=FINISH_ABORT())
    watch = ReasonWatch()
    watch.look([held, gone, gone])
    held.finished_reason = FINISH_LENGTH()
    watch.look([held, gone])
    assert watch.take_new() == ()
    held.finished_reason, gone.finished_reason = FINISH_ABORT(), FINISH_LENGTH()
    watch.look([held])
    changes = watch.take_new()
    with pytest.raises(ReasonChanged) as error:
        check_reasons([("stage 1", changes)])
    assert str(error.value).splitlines()[1:3] == [
        "stage 1: held had ended by FINISH_LENGTH, and now by FINISH_ABORT",
        "stage 1: gone had ended by FINISH_ABORT, and now by FINISH_LENGTH",
    ]
    watch.look([held])
    assert watch.take_new() == ()


def test_pause_delays_an_abort() -> None:
    aborts, _ = watch(since=10)
    aborts.resume("pp", 40)
    aborts.ran("pp", view(41), [decode(40)])
    with pytest.raises(AbortLost, match="arrived in iteration 40"):
        aborts.ran("pp", view(43), [decode(42)])


def test_request_whose_grammar_is_compiled_is_removed_in_time() -> None:
    aborts, _ = watch(since=10)
    held = StageView(0, 20, (), None, ((), ()), (), 0, 0, in_grammar_queue=("a",))
    with pytest.raises(AbortLost, match=r"it is still there 10 iterations later: .* grammar"):
        aborts.ran("pp", held, [])


class TestPauses:
    """A pause is handled at the top of an iteration, before its forward."""

    def _pauses(self, *changes: tuple[int, str]) -> PauseWatch:
        pauses = PauseWatch()
        for iteration, name in changes:
            pauses.handled("pp", 0, name, iteration)
        return pauses

    @pytest.mark.parametrize("iteration", [0, 4, 8, 12])
    def test_work_outside(self, iteration: int) -> None:
        pauses = self._pauses((5, "pause_generation"), (8, "continue_generation"))
        pauses.ran("pp", view(13), [decode(iteration)])
        pauses.ran("decode", view(13), [decode(6)])
        pauses.ran("pp", view(13, stage=1), [decode(6)])
        assert pauses.resumed("pp", 0) == 8
        assert not pauses.paused("pp", 0)

    @pytest.mark.parametrize("iteration", [5, 6, 7])
    def test_work_while_paused(self, iteration: int) -> None:
        pauses = self._pauses((5, "pause_generation"), (8, "continue_generation"))
        with pytest.raises(WorkedWhilePaused, match=f"in iteration 5, .* {iteration}: decode"):
            pauses.ran("pp", view(13), [decode(iteration)])

    def test_loops_that_start_again_stay_paused(self) -> None:
        pauses = self._pauses((5, "pause_generation"))
        pauses.restart()
        assert pauses.paused("pp", 0)
        with pytest.raises(WorkedWhilePaused):
            pauses.ran("pp", view(1), [decode(0)])
