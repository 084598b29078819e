"""Tables of the tensor fields of SGLang's batches: device tensors, host mirrors, or staging.

One table per class, with every field that is a tensor in any of SGLang 0.5.13 to 0.5.21. A tensor
in a field that is not in its table is reported as an error, never skipped.
Source: ``ScheduleBatch`` in srt/managers/schedule_batch.py, ``ForwardBatch`` in
srt/model_executor/forward_batch_info.py and its DeepSeek mixin beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALWAYS, EXTEND, OPTIONAL = "always", "extend", "optional"
"""When a device field must contain a tensor: at each forward, at an extend, or only if used."""


@dataclass(frozen=True)
class Device:
    """A tensor that the forward reads on the device.

    `cause`: what usually empties it; `decode_cause`: what does so in a decode batch.
    """

    when: str = OPTIONAL
    cause: str = ""
    decode_cause: str = ""


@dataclass(frozen=True)
class Mirror:
    """A host tensor with the same contents as the device field `of`."""

    of: str


@dataclass(frozen=True)
class Host:
    """A host tensor that stays on the host."""


@dataclass(frozen=True)
class Staging:
    """A copy under way: the function `by` moves it into the field `into`, then sets it to None.

    `same_contents`: whether `into` then starts with exactly these values.
    """

    into: str
    by: str
    same_contents: bool


@dataclass(frozen=True)
class Either:
    """A tensor in host or device memory, depending on SGLang's options."""


Kind = Device | Mirror | Host | Staging | Either
Table = Mapping[str, Kind]

_H2D = (
    "a caller of prepare_for_extend that never resolves the deferred host-to-device copy "
    "(SGLang PR 26883, after PR 25945 took the copy out of prepare_for_extend); "
    "the normal path calls resolve_forward_inputs before the forward"
)

_GATHER = (
    "a caller of prepare_for_decode that goes to the forward without resolve_forward_inputs: on a "
    "decode batch the token ids lie in SGLang's future_map, by req_pool_indices, until that "
    "function gathers them (srt/managers/overlap_utils.py)"
)
_LOCATIONS = Device(
    ALWAYS,
    cause="a batch that was merged or filtered, or whose forward is over, and is not prepared "
    "again: prepare_for_extend and prepare_for_decode allocate its KV locations",
)
_INPUT_IDS = Device(ALWAYS, cause=_H2D, decode_cause=_GATHER)


def _optional(*names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, Device())


def _either(*names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, Either())


_MAMBA = _optional(
    "mamba_track_indices",
    "mamba_track_mask",
    "mamba_track_seqlens",
    "mamba_cow_src_indices",
    "mamba_cow_dst_indices",
    "mamba_clear_indices",
)
_REPLACEMENTS = _optional("input_embeds", "replace_embeds", "replace_positions", "token_type_ids")
_ENCODER = _optional("encoder_lens", "encoder_out_cache_loc")

SCHEDULE_BATCH: Table = {
    "input_ids": _INPUT_IDS,
    "req_pool_indices": Device(ALWAYS),
    "seq_lens": Device(ALWAYS),
    "orig_seq_lens": Device(ALWAYS),
    "out_cache_loc": _LOCATIONS,
    "prefill_input_ids_cpu": Staging("input_ids", "resolve_forward_inputs", same_contents=True),
    "mix_running_indices": Staging("input_ids", "resolve_forward_inputs", same_contents=False),
    "mix_running_indices_cpu": Host(),
    "seq_lens_cpu": Mirror(of="seq_lens"),
    "seq_lens_cpu_cache": Mirror(of="seq_lens"),
    "req_pool_indices_cpu": Mirror(of="req_pool_indices"),
    # ForwardBatch.init_new moves it (extend_input_logprob_token_ids_gpu)
    "extend_input_logprob_token_ids": Host(),
    **_either("engram_history"),
    **_optional("ne_token_table", "ne_skip_token_table_update"),
    **_MAMBA,
    **_REPLACEMENTS,
    **_ENCODER,
}

FORWARD_BATCH: Table = {
    "input_ids": _INPUT_IDS,
    "req_pool_indices": Device(ALWAYS),
    "seq_lens": Device(ALWAYS),
    "out_cache_loc": _LOCATIONS,
    "positions": Device(ALWAYS),
    "extend_seq_lens": Device(EXTEND),
    "extend_prefix_lens": Device(EXTEND),
    "extend_start_loc": Device(EXTEND),
    "seq_lens_cpu": Mirror(of="seq_lens"),
    "req_pool_indices_cpu": Mirror(of="req_pool_indices"),
    "multi_item_delimiter_indices": Host(),
    "token_indices_to_pool": Host(),
    **_either("engram_history", "dp_local_start_pos", "dp_local_num_tokens"),
    **_either("req_all_ids_flat", "req_all_ids_lens", "rids_int", "bootstrap_room_ids_int"),
    **_either("prefix_chunk_seq_lens_cpu", "prefix_chunk_starts_cpu"),
    **_optional("orig_seq_lens", "out_cache_loc_virtual", "extend_input_logprob_token_ids_gpu"),
    **_optional("cross_attention_custom_mask", "topk_indices"),
    **_optional("global_num_tokens_gpu", "global_num_tokens_for_logprob_gpu"),
    **_optional("global_num_token_non_padded", "num_token_non_padded"),
    **_optional("next_token_logits_buffer", "temperature", "top_p", "hidden_states", "residual"),
    **_optional("mm_input_embeds", "mm_token_modalities", "multi_gate_indices"),
    **_optional("mrope_positions", "dcp_kv_mask", "_attn_output"),
    **_optional("prefix_chunk_starts", "prefix_chunk_seq_lens", "prefix_chunk_cu_seq_lens"),
    **_optional("prefix_chunk_kv_indices", "mha_one_shot_kv_indices", "mha_empty_kv_indptr"),
    **_optional("prefix_all_kv_indices", "prefix_dense_kv_indices"),
    **_optional("fused_prefix_k", "fused_prefix_v"),
    **_optional("origin_out_cache_loc", "aux_hidden_states_buffer"),
    **_optional("dllm_input_preparation_state", "dllm_prompt_mask"),
    **_optional("encoder_swa_row_floor", "encoder_swa_compress_rows"),
    **_MAMBA,
    **_REPLACEMENTS,
    **_ENCODER,
}
