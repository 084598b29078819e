"""PR 27374: a freed metadata slot of the decode side keeps the room of its last owner.

0.5.13 to 0.5.22; from 0.5.23 pop_transferred does not clear the room itself.
"""

from __future__ import annotations

from pytest_pprank.sglang.reverts.match import Shape
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert

REVERT = Revert(
    id="27374",
    pr=27374,
    title="fix(pd): clear stale bootstrap_room when freeing metadata buffer slot",
    url="https://github.com/sgl-project/sglang/pull/27374",
    versions="0.5.13 to 0.5.22 (later ones clear the slot in MetadataBuffers.clear_slot)",
    patches=(
        Patch(
            targets=("sglang.srt.disaggregation.decode.DecodeTransferQueue.pop_transferred",),
            edits=(
                Edit(Shape("Assign", mentions=("metadata_buffers",), assigns=("bootstrap_room",))),
            ),
        ),
    ),
)
