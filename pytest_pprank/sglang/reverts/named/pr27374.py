"""PR 27374: a freed metadata slot of decode keeps the room of its last owner.

Up to 0.5.22 pop_transferred clears the room itself; from 0.5.23 on MetadataBuffers.clear_slot does.
"""

from __future__ import annotations

from pytest_pprank.sglang.reverts.match import Shape
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert

_POP = "sglang.srt.disaggregation.decode.DecodeTransferQueue.pop_transferred"

REVERT = Revert(
    id="27374",
    pr=27374,
    title="fix(pd): clear stale bootstrap_room when freeing metadata buffer slot",
    url="https://github.com/sgl-project/sglang/pull/27374",
    versions="0.5.13 and later",
    patches=(
        Patch(
            targets=(_POP,),
            edits=(
                Edit(Shape("Assign", mentions=("metadata_buffers",), assigns=("bootstrap_room",))),
            ),
            releases="<0.5.23",
        ),
        Patch(
            targets=(_POP,),
            edits=(Edit(Shape("Expr", mentions=("metadata_buffers", "clear_slot"))),),
            releases=">=0.5.23",
        ),
    ),
)
