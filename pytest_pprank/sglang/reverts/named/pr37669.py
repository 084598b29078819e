"""PR 37669: the profiler broadcasts its samples, but drops the result of the broadcast.

The bug was in the broadcast to the attention-CP ranks. From 0.5.20 on one broadcast serves all
ranks, and dropping its result is the same mistake. Older versions have three broadcasts with other
names, so they are refused.
"""

from __future__ import annotations

from pytest_pprank.sglang.reverts.match import Shape
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert

REVERT = Revert(
    id="37669",
    pr=37669,
    title="[Fix] Apply the attention-CP broadcast result in PP dynamic-chunk profiling",
    url="https://github.com/sgl-project/sglang/pull/37669",
    versions="0.5.20 and later (older ones have three broadcasts)",
    patches=(
        Patch(
            targets=(
                "sglang.srt.managers.scheduler_components.dynamic_chunk_sizer."
                "DynamicChunkSizer.profile_and_fit",
            ),
            edits=(
                Edit(
                    Shape(
                        "Assign",
                        mentions=("broadcast_pyobj",),
                        assigns=("samples",),
                        part="targets",
                    ),
                    text="_",
                ),
            ),
        ),
    ),
)
