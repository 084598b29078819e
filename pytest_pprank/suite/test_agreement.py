"""The stages agree on shared facts, and divide the model's layers without gap or overlap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_ranks_agree

if TYPE_CHECKING:
    from pytest_pprank import Pprank
    from pytest_pprank.sglang.compat.objects import ScheduleBatch, Scheduler


# The first of all tests, with these server args: the profiler that runs during a Scheduler's start
# has broken most often (SGLang PR 26883; 0.5.19, where the other stages then hang).
@pytest.mark.pprank(known_bug="profiler-fails-on-first-stage")
@pytest.mark.sglang(enable_dynamic_chunking=True)
def test_stages_agree_on_chunk_sizes(scheduler: Scheduler, pprank: Pprank) -> None:
    from pytest_pprank.sglang.stage.facts import stage_facts
    from pytest_pprank.sglang.stage.profiler import profiler_name
    from pytest_pprank.sglang.stage.stage import this_stage

    by_stage = enumerate(pprank.gather(this_stage().started(scheduler).profiler_run.problems()))
    problems = [f"stage {stage}: {problem}" for stage, said in by_stage for problem in said]
    assert not problems, "the profiler, while the Schedulers started:\n" + "\n".join(problems)
    sizes = stage_facts(scheduler).chunk_sizes
    assert_ranks_agree(sizes, what=f"chunk sizes ({profiler_name()})")
    if pprank.num_stages > 1:
        assert all(size is not None and size > 0 for size in sizes)


def test_stages_agree_on_their_limits(scheduler: Scheduler) -> None:
    from pytest_pprank.sglang.stage.facts import stage_facts

    assert_ranks_agree(stage_facts(scheduler).shared, what="what all stages must have in common")


def test_layers_tile_the_model(scheduler: Scheduler, pprank: Pprank) -> None:
    from pytest_pprank.sglang.stage.facts import stage_facts

    every = pprank.gather((pprank.tp_rank, stage_facts(scheduler)))
    facts = [facts for tp_rank, facts in every if tp_rank == 0]
    held = [layer for stage in facts for layer in stage.layers]
    assert held == list(range(facts[0].layers_of_model)), (
        f"layers by stage: {[stage.layers for stage in facts]}"
    )


def test_stages_build_the_same_batch(make_schedule_batch: Callable[..., ScheduleBatch]) -> None:
    batch = make_schedule_batch([5, 17, 40])
    assert_ranks_agree(batch.prefill_input_ids_cpu, what="staged token ids")
    assert_ranks_agree(batch.seq_lens_cpu, what="sequence lengths")
    assert_ranks_agree([req.rid for req in batch.reqs], what="request ids")
