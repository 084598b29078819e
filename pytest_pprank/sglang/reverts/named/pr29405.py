"""PR 29405: an abort searches only the current microbatch for the request, as without PP."""

from __future__ import annotations

from pytest_pprank.sglang.reverts.match import Shape
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert

REVERT = Revert(
    id="29405",
    pr=29405,
    title="Fix pipeline-parallel abort missing in-flight requests in non-current microbatch slots",
    url="https://github.com/sgl-project/sglang/pull/29405",
    versions="0.5.16 and later, where an abort looks into all microbatches",
    patches=(
        Patch(
            targets=(
                # 0.5.22 and later, then 0.5.19 to 0.5.21, then 0.5.16 to 0.5.18; later versions
                # also have the functions of earlier ones, but without the condition
                "sglang.srt.managers.scheduler.Scheduler._collect_inflight_batches",
                "sglang.srt.managers.scheduler.Scheduler.collect_inflight_reqs",
                "sglang.srt.managers.scheduler.Scheduler.abort_request",
            ),
            edits=(
                Edit(
                    Shape(
                        "If",
                        mentions=("pp_size", "last_batch", "running_mbs", "mbs"),
                        assigns=("inflight_batches",),
                        part="test",
                    ),
                    text="True",
                ),
            ),
        ),
    ),
)
