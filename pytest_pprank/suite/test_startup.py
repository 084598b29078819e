"""The real Scheduler starts on every stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank import assert_kv_balanced

if TYPE_CHECKING:
    from pytest_pprank import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler


def test_scheduler_starts_on_its_stage(scheduler: Scheduler, pprank: Pprank) -> None:
    from pytest_pprank.sglang.stage.facts import stage_facts

    facts = stage_facts(scheduler)
    assert (facts.stage, facts.num_stages) == (pprank.stage, pprank.num_stages)


def test_scheduler_has_its_real_mixins(scheduler: Scheduler) -> None:
    from pytest_pprank.sglang.stage.facts import stage_facts

    expected = {
        "SchedulerPPMixin",
        "SchedulerDisaggregationPrefillMixin",
        "SchedulerDisaggregationDecodeMixin",
    }
    assert expected <= set(stage_facts(scheduler).mixins)


def test_scheduler_is_idle_after_its_start(scheduler: Scheduler) -> None:
    from pytest_pprank.sglang.stage.idle import idle_problems

    assert idle_problems(scheduler) == []
    assert_kv_balanced(scheduler)
