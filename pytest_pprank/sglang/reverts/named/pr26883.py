"""PR 26883: the PP profiler forwards a batch whose ids are still staged on the host.

PR 25945 made ``prepare_for_extend`` leave ``input_ids`` None and stage the ids in
``prefill_input_ids_cpu``. Since PR 26883 (0.5.13) the profiler resolves the staging itself.
"""

from __future__ import annotations

from pytest_pprank.sglang.reverts.match import Shape
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert

REVERT = Revert(
    id="26883",
    pr=26883,
    title="[PP][Bugfix] Handle input_ids assignment in prepare_for_extend",
    url="https://github.com/sgl-project/sglang/pull/26883",
    versions="0.5.13 and later",
    patches=(
        Patch(
            targets=(
                # 0.5.20 and later (PR 37674), then 0.5.13 to 0.5.19
                "sglang.srt.managers.scheduler_components.dynamic_chunk_sizer."
                "DynamicChunkSizer._profile_prefill_latency",
                "sglang.srt.managers.scheduler_pp_mixin."
                "SchedulerPPMixin.profile_and_init_predictor",
            ),
            edits=(
                Edit(
                    Shape(
                        "If",
                        mentions=("input_ids", "prefill_input_ids_cpu"),
                        assigns=("input_ids", "prefill_input_ids_cpu"),
                    )
                ),
            ),
        ),
    ),
)
