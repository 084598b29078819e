"""SGLang's control requests, as data: all that its Scheduler takes except prompts and aborts."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.sglang.compat.messages import enumeration_of, message_class, problem_with
from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message

_OWN = ("rid", "http_worker_ipc")
"""Fields of every message, by which SGLang routes the answer."""


@dataclass(frozen=True)
class Kind:
    """One kind of control request, by the names of SGLang's message classes.

    `answer`: the class of the answer; None if there is none. `rpc`: whether it goes through the
    socket for remote calls instead of the tokenizer's. `by_first`: whether only the first stage
    does what is asked; the others answer nothing, or something that says nothing.
    """

    request: str
    answer: str | None = None
    rpc: bool = False
    by_first: bool = False


KINDS: Mapping[str, Kind] = {
    "add_external_corpus": Kind("AddExternalCorpusReqInput", "AddExternalCorpusReqOutput"),
    "attach_hicache_storage": Kind("AttachHiCacheStorageReqInput", "AttachHiCacheStorageReqOutput"),
    "begin_weight_update": Kind("BeginWeightUpdateReqInput", "BeginWeightUpdateReqOutput"),
    "check_weights": Kind("CheckWeightsReqInput", "CheckWeightsReqOutput"),
    "clear_hicache_storage": Kind("ClearHiCacheReqInput", "ClearHiCacheReqOutput"),
    "close_session": Kind("CloseSessionReqInput"),
    "configure_logging": Kind("ConfigureLoggingReq"),
    "continue_generation": Kind("ContinueGenerationReqInput"),
    "destroy_weights_update_group": Kind(
        "DestroyWeightsUpdateGroupReqInput", "DestroyWeightsUpdateGroupReqOutput"
    ),
    "detach_hicache_storage": Kind("DetachHiCacheStorageReqInput", "DetachHiCacheStorageReqOutput"),
    "dumper_control": Kind("DumperControlReqInput", "DumperControlReqOutput", by_first=True),
    "end_weight_update": Kind("EndWeightUpdateReqInput", "EndWeightUpdateReqOutput"),
    "expert_distribution": Kind("ExpertDistributionReq", "ExpertDistributionReqOutput"),
    "flush_cache": Kind("FlushCacheReqInput", "FlushCacheReqOutput"),
    "freeze_gc": Kind("FreezeGCReq"),
    "get_hicache_l3_layout": Kind("GetHiCacheL3LayoutReq", "GetHiCacheL3LayoutReqOutput"),
    "get_internal_state": Kind("GetInternalStateReq", "GetInternalStateReqOutput"),
    "get_loads": Kind("GetLoadsReqInput", "GetLoadsReqOutput"),
    "get_weights_by_name": Kind("GetWeightsByNameReqInput", "GetWeightsByNameReqOutput"),
    "init_weights_send_group_for_remote_instance": Kind(
        "InitWeightsSendGroupForRemoteInstanceReqInput",
        "InitWeightsSendGroupForRemoteInstanceReqOutput",
    ),
    "init_weights_update_group": Kind(
        "InitWeightsUpdateGroupReqInput", "InitWeightsUpdateGroupReqOutput"
    ),
    "list_external_corpora": Kind("ListExternalCorporaReqInput", "ListExternalCorporaReqOutput"),
    "load_lora_adapter": Kind("LoadLoRAAdapterReqInput", "LoRAUpdateOutput"),
    "load_lora_adapter_from_tensors": Kind(
        "LoadLoRAAdapterFromTensorsReqInput", "LoRAUpdateOutput"
    ),
    "open_session": Kind("OpenSessionReqInput", "OpenSessionReqOutput", by_first=True),
    "pause_generation": Kind("PauseGenerationReqInput"),
    "pd_role_switch": Kind("PdRoleSwitchReqInput", "PdRoleSwitchReqOutput"),
    "profile": Kind("ProfileReq", "ProfileReqOutput"),
    "release_memory_occupation": Kind(
        "ReleaseMemoryOccupationReqInput", "ReleaseMemoryOccupationReqOutput"
    ),
    "remove_external_corpus": Kind("RemoveExternalCorpusReqInput", "RemoveExternalCorpusReqOutput"),
    "resume_memory_occupation": Kind(
        "ResumeMemoryOccupationReqInput", "ResumeMemoryOccupationReqOutput"
    ),
    "rpc": Kind("RpcReqInput", "RpcReqOutput", rpc=True),
    "scale_elastic_ep": Kind("ScaleElasticEPReqInput", "ScaleElasticEPReqOutput"),
    "send_weights_to_remote_instance": Kind(
        "SendWeightsToRemoteInstanceReqInput", "SendWeightsToRemoteInstanceReqOutput"
    ),
    "set_internal_state": Kind("SetInternalStateReq", "SetInternalStateReqOutput"),
    "shutdown": Kind("ShutdownReq"),
    "slow_down": Kind("SlowDownReqInput", "SlowDownReqOutput"),
    "unload_lora_adapter": Kind("UnloadLoRAAdapterReqInput", "LoRAUpdateOutput"),
    "update_weight_version": Kind("UpdateWeightVersionReqInput", "UpdateWeightVersionReqOutput"),
    "update_weights_from_disk": Kind(
        "UpdateWeightFromDiskReqInput", "UpdateWeightFromDiskReqOutput"
    ),
    "update_weights_from_distributed": Kind(
        "UpdateWeightsFromDistributedReqInput", "UpdateWeightsFromDistributedReqOutput"
    ),
    "update_weights_from_ipc": Kind(
        "UpdateWeightsFromIPCReqInput", "UpdateWeightsFromIPCReqOutput"
    ),
    "update_weights_from_tensor": Kind(
        "UpdateWeightsFromTensorReqInput", "UpdateWeightsFromTensorReqOutput"
    ),
}
"""By SGLang's name of the method (or HTTP path). Some releases lack some of them (`kind_named`)."""

ANSWERS = frozenset(kind.answer for kind in KINDS.values() if kind.answer is not None)


def kinds_here(handled: Container[str]) -> list[str]:
    """Return the names of all kinds whose message class is in `handled`."""
    return [name for name, kind in KINDS.items() if kind.request in handled]


def kind_named(name: str, call: str, handled: Container[str]) -> Kind:
    """Return the kind of that name; raises UsageError if the installed SGLang has none.

    `handled`: the names of the message classes that its Scheduler handles.
    """
    here = kinds_here(handled)
    if name in here:
        kind = KINDS[name]
        # in some releases this kind of request has no answer yet
        answers = kind.answer is not None and message_class(kind.answer) is not None
        return kind if answers else Kind(kind.request, None, kind.rpc)
    if name == "abort":
        raise UsageError(f"{call}: {name!r} is a method of its own: abort(rid)")
    lacks = " in the installed SGLang" if name in KINDS else did_you_mean(name, here)
    raise UsageError(
        f"{call}: there is no control request {name!r}{lacks}; allowed: {', '.join(here)}"
    )


def control_request(kind: Kind, rid: str, fields: Mapping[str, object], call: str) -> Message:
    """Return the message, with id `rid`; raises UsageError for fields that do not fit."""
    message = message_class(kind.request)
    known = {
        name: parameter.default is parameter.empty
        for name, parameter in inspect.signature(message).parameters.items()
        if name not in _OWN
    }
    allowed = ", ".join(known) or "none"
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"{call}: SGLang's {kind.request} has no field {name!r}{hint}; allowed: {allowed}"
            )
    missing = [name for name, required in known.items() if required and name not in fields]
    if missing:
        raise UsageError(f"{call}: {kind.request} needs {', '.join(missing)}; allowed: {allowed}")
    values = {
        name: _member(choices, value, f"{call}: {name}")
        if (choices := enumeration_of(message, name))
        else value
        for name, value in fields.items()
    }
    made: Message = message(**{"rid": rid, **values})
    if problem := problem_with(made):
        raise UsageError(f"{call}: SGLang does not take {dict(fields)!r}: {problem}")
    return made


def _member(kind: type[Enum], value: object, what: str) -> Enum:
    """Return the member of an enumeration that is `value`, or has that name."""
    if isinstance(value, kind):
        return value
    known = kind.__members__
    if value in known:
        return known[str(value)]
    raise UsageError(f"{what}={value!r}; allowed: {', '.join(known)}")


def verdicts(answers: Mapping[int, object]) -> dict[int, tuple[tuple[str, bool], ...]]:
    """Return, by stage, the boolean fields of an answer, which say whether it succeeded."""
    return {
        stage: tuple(
            (name, need(answer, name))
            for name in inspect.signature(type(answer)).parameters
            if isinstance(need(answer, name), bool)
        )
        for stage, answer in answers.items()
    }
