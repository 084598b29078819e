"""All control requests that SGLang's Scheduler handles: those that the suite sends, and the others.

A test of this project compares these tables with what the installed SGLang handles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_pprank.sglang.static.release import is_older_than

if TYPE_CHECKING:
    from pytest_pprank import Engine
    from pytest_pprank.sglang.compat.objects import Options

PROFILE = "type" if is_older_than("0.5.15") else "req_type"
"""The field that says what to do with a profile."""
CUDA_ALONE = frozenset({"check_weights"} if is_older_than("0.5.23") else ())
"""They call torch.cuda, and fail on other devices."""

EVER: Mapping[str, Options] = {
    "check_weights": {"action": "checksum"},
    "close_session": {"session_id": "none of that name"},
    "configure_logging": {},
    "freeze_gc": {},
    "get_hicache_l3_layout": {},
    "get_internal_state": {},
    "get_loads": {},
    "slow_down": {"forward_sleep_time": None},
    "update_weight_version": {"new_version": "of a test"},
}
"""They succeed at any moment, and no request notices them."""

SOMETIMES: Mapping[str, Options] = {"flush_cache": {}, "rpc": {"method": "note_call"}}
"""They may be sent at any moment. Some are refused then, or wait for other stages."""

OFF: Mapping[str, Options] = {
    "add_external_corpus": {"corpus_id": "none"},
    "attach_hicache_storage": {"hicache_storage_backend": "file"},
    "clear_hicache_storage": {},
    "destroy_weights_update_group": {"group_name": "none of that name"},
    "detach_hicache_storage": {},
    "dumper_control": {"method": "reset", "body": {}},
    "end_weight_update": {},
    "list_external_corpora": {},
    "pd_role_switch": {"new_role": "decode"},
    "profile": {PROFILE: "STOP_PROFILE"},
    "remove_external_corpus": {"corpus_id": "none"},
    "update_weights_from_ipc": {"zmq_handles": {}},
}
"""SGLang refuses them, because what they need is off, or was not begun."""

TESTED_ELSEWHERE = frozenset(
    {
        "begin_weight_update",
        "continue_generation",
        "expert_distribution",
        "get_weights_by_name",
        "load_lora_adapter",
        "open_session",
        "pause_generation",
        "release_memory_occupation",
        "resume_memory_occupation",
        "set_internal_state",
        "shutdown",
        "unload_lora_adapter",
        "update_weights_from_disk",
        "update_weights_from_tensor",
    }
)
"""They have an effect, and tests of their own."""

NOT_SENT: Mapping[str, str] = {
    "init_weights_send_group_for_remote_instance": "needs a second server",
    "init_weights_update_group": "needs a trainer; stages would join its group with the same rank",
    "load_lora_adapter_from_tensors": "as load_lora_adapter, with weights in the message",
    "scale_elastic_ep": "SGLang sends it only to a server with elastic experts, which needs GPUs",
    "send_weights_to_remote_instance": "needs a second server",
    "update_weights_from_distributed": "needs a trainer",
}
"""Why the suite does not send them."""


def handled_here(engine: Engine, table: Mapping[str, Options]) -> dict[str, Options]:
    """Return the entries of a table that the installed SGLang handles on any device."""
    from pytest_pprank.sglang.compat.messages import handled_requests
    from pytest_pprank.sglang.driver.control_requests import kinds_here

    known = set(kinds_here(handled_requests(engine.scheduler))) - CUDA_ALONE
    return {name: fields for name, fields in table.items() if name in known}
