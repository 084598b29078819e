"""PR 31869: each stage polls for itself instead of using what the stages agreed on.

Up to 0.5.21 the stages agree by sending ids round the ring; from 0.5.22 on they use the polls of
the first stage (poll_and_all_reduce_prefill_pp).
"""

from __future__ import annotations

from pytest_pprank.sglang.reverts.match import Shape
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert

# Use the state that this stage polls now for an agreed request, whatever was agreed.
_LOCAL_POLLS = """
polls = [
    poll if req.rid in {*(pp_good_rids or ()), *(pp_bad_rids or ())} else None
    for req, poll in zip(
        self.queue,
        poll_and_all_reduce_attn_cp_tp_group(
            [req.disagg_kv_sender for req in self.queue],
            self.scheduler.attn_cp_cpu_group,
            self.scheduler.attn_tp_cpu_group,
        ),
    )
]
"""

_LOCAL_POLLS_ALONE = """
polls = poll_and_all_reduce_attn_cp_tp_group(
    [req.disagg_kv_sender for req in self.queue],
    self.scheduler.attn_cp_cpu_group,
    self.scheduler.attn_tp_cpu_group,
)
"""
_POP = "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue.pop_bootstrapped"

REVERT = Revert(
    id="31869",
    pr=31869,
    title="[PD+PP] Honor PP consensus for bootstrap and prealloc",
    url="https://github.com/sgl-project/sglang/pull/31869",
    versions="0.5.17 and later",
    patches=(
        Patch(
            targets=(_POP,),
            edits=(
                Edit(
                    Shape(
                        "Assign",
                        mentions=("poll_and_all_reduce_pp", "pp_good_rids", "pp_bad_rids"),
                        assigns=("polls",),
                    ),
                    text=_LOCAL_POLLS,
                ),
            ),
            releases="<0.5.22",
        ),
        Patch(
            targets=(_POP,),
            edits=(
                Edit(
                    Shape(
                        "Assign",
                        mentions=("poll_and_all_reduce_prefill_pp",),
                        assigns=("polls",),
                    ),
                    text=_LOCAL_POLLS_ALONE,
                ),
            ),
            releases=">=0.5.22",
        ),
    ),
)
