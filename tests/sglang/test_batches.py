"""Building, running, releasing and resetting on every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import UsageError, assert_kv_balanced, assert_ranks_agree

if TYPE_CHECKING:
    from pytest_pprank import Pprank

Make = Callable[..., Any]


def test_requests_are_the_same_on_all_ranks_and_differ_from_each_other(make_req: Make) -> None:
    reqs = [make_req(prompt_len=9), make_req(prompt_len=9), make_req(input_ids=[1, 2], rid="mine")]
    assert_ranks_agree([(req.rid, list(req.origin_input_ids)) for req in reqs])
    assert list(reqs[0].origin_input_ids) != list(reqs[1].origin_input_ids)
    assert (reqs[2].rid, list(reqs[2].origin_input_ids)) == ("mine", [1, 2])


def test_numbering_starts_anew_for_each_test(make_req: Make) -> None:
    assert make_req(prompt_len=1).rid == "req-0"


@pytest.mark.parametrize(
    "wrong",
    [{}, {"prompt_len": 3, "input_ids": [1]}, {"input_ids": []}, {"input_ids": [10**6]}],
    ids=["neither", "both", "empty", "beyond-vocabulary"],
)
def test_wrong_prompts(make_req: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="make_req") as error:
        make_req(**wrong)
    assert shown_files(error) == {"test_batches.py"}


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([3], {"mode": "prefill"}, "allowed: 'extend', 'decode'"),
        ([3], {"mode": "deocde"}, r"mode='deocde' \(did you mean 'decode'\?\)"),
        ([], {}, "prompts is empty"),
        (5, {}, "prompts must be a list, .* not 5"),
        ("abc", {}, "prompts must be a list, .* not 'abc'"),
        ([None], {}, "a prompt is a list of token ids or a length, not None"),
        ([["a"]], {}, "a prompt is a list of token ids or a length, not a list"),
        ([3], {"chunk": 0}, "chunk=0; a chunk has at least 1 token"),
        ([3], {"mode": "decode", "chunk": 3}, "chunk=3 goes with mode='extend' only"),
    ],
)
def test_wrong_batches(scheduler: Any, prompts: Any, options: dict[str, Any], words: str) -> None:
    from pytest_pprank.sglang.batches.build import make_schedule_batch

    with pytest.raises(UsageError, match=words) as error:
        make_schedule_batch(scheduler, prompts, **options)
    assert shown_files(error) == {"test_batches.py"}


def test_wrong_input_of_a_forward_batch(make_forward_batch: Make) -> None:
    with pytest.raises(UsageError, match=r"takes SGLang's ScheduleBatch, .* not None") as error:
        make_forward_batch(None)
    assert shown_files(error) == {"test_batches.py"}


def test_next_chunk_of_a_whole_batch(scheduler: Any, schedule_batch: Any) -> None:
    from pytest_pprank.sglang.batches.build import make_next_chunk

    with pytest.raises(UsageError, match="make it with chunk=N") as error:
        make_next_chunk(scheduler, schedule_batch)
    assert shown_files(error) == {"test_batches.py"}


def shown_files(error: pytest.ExceptionInfo[Any]) -> set[str]:
    """Return the files whose source pytest would show."""
    return {Path(entry.path).name for entry in error.traceback if not entry.ishidden(error)}


def test_forward_runs_on_every_stage(
    scheduler: Any, schedule_batch: Any, make_forward_batch: Make, pprank: Pprank
) -> None:
    from pytest_pprank.sglang.batches.build import run_forward

    output = run_forward(scheduler, make_forward_batch(schedule_batch))
    if pprank.is_last_stage:
        assert output.next_token_logits.shape[0] == 3
    else:
        assert output.tensors["hidden_states"].shape[0] == 62


def test_decode_gathers_the_relayed_tokens(
    make_schedule_batch: Make, make_forward_batch: Make
) -> None:
    batch = make_schedule_batch([4, 6], mode="decode")
    forward_batch = make_forward_batch(batch)
    assert forward_batch.input_ids.tolist() == [req.output_ids[-1] for req in batch.reqs]
    assert forward_batch.seq_lens.tolist() == [5, 7]


def test_prefix_that_is_cached_is_not_computed_again(
    make_schedule_batch: Make, make_forward_batch: Make
) -> None:
    make_schedule_batch([list(range(50, 80))], mode="decode")
    again = make_schedule_batch([[*range(50, 80), 7]])
    assert make_forward_batch(again).extend_prefix_lens.tolist() == [30]


def test_releasing_twice_is_harmless(scheduler: Any, schedule_batch: Any) -> None:
    from pytest_pprank.sglang.batches.build import release

    release(scheduler, schedule_batch)
    release(scheduler, schedule_batch)
    assert_kv_balanced(scheduler)


def test_reset_brings_everything_back(scheduler: Any, make_req: Make) -> None:
    from pytest_pprank.sglang.batches.build import make_schedule_batch
    from pytest_pprank.sglang.stage.idle import idle_problems, reset_scheduler

    scheduler.waiting_queue.append(make_req(prompt_len=3, rid="left"))
    scheduler.running_batch = make_schedule_batch(scheduler, [12], mode="decode")
    scheduler.chunked_req = scheduler.running_batch.reqs[0]
    problems = "\n".join(idle_problems(scheduler))
    for expected in ("waiting queue: 1 requests (left)", "running_batch: 1", "chunked_req", "KV"):
        assert expected in problems
    reset_scheduler(scheduler)
    assert idle_problems(scheduler) == []


def test_reset_restores_plain_values(scheduler: Any) -> None:
    from pytest_pprank.sglang.stage.idle import reset_scheduler

    before = (scheduler.chunked_prefill_size, scheduler.max_running_requests)
    scheduler.chunked_prefill_size = None
    del scheduler.max_running_requests
    reset_scheduler(scheduler)
    assert (scheduler.chunked_prefill_size, scheduler.max_running_requests) == before


def test_new_attributes_are_dropped_and_patched_methods_come_back(scheduler: Any) -> None:
    from pytest_pprank.sglang.stage.idle import drop_new_attributes

    names = set(vars(scheduler))
    scheduler.brand_new = scheduler.get_next_batch_to_run = print
    drop_new_attributes(scheduler)
    assert vars(scheduler).keys() <= names
    assert scheduler.get_next_batch_to_run is not print


@pytest.mark.pprank(pp=1)
def test_wrong_kv_gives_other_tokens(
    scheduler: Any, make_schedule_batch: Make, make_forward_batch: Make
) -> None:
    """This is why the tiny models exist: with dummy weights no difference would show."""
    from pytest_pprank.sglang.batches.build import run_forward
    from pytest_pprank.sglang.static.release import TINY_LAYERS

    def tokens(prompt: list[int], spoil: bool = False) -> list[int]:
        batch = make_schedule_batch([prompt], mode="decode")
        pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
        if spoil:
            for layer in range(TINY_LAYERS):
                for buffer in pool.get_kv_buffer(layer):
                    buffer.zero_()
        logits = run_forward(scheduler, make_forward_batch(batch)).next_token_logits
        return logits.topk(4).indices.flatten().tolist()  # type: ignore[no-any-return]

    right = tokens(list(range(9, 60)))
    assert right != tokens(list(range(300, 351)))
    assert right != tokens(list(range(9, 60)), spoil=True)
