"""The server args of a ranked test: defaults for the tiny model, and how tests change them.

Imports neither torch nor sglang.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from pytest_pprank.errors import UsageError

# Long enough that SGLang's watchdog never signals our launcher. The controller handles ranks that
# hang: it knows the test and stops all ranks.
_NEVER_S = 7 * 24 * 3600
_CHUNK = 256
_REQUESTS = 8

_ROLES = ("prefill", "decode")


def default_server_args(
    *, num_stages: int, device: str, model_path: str, tp_size: int = 1
) -> dict[str, object]:
    """Return the server args for the tiny model on `num_stages` pipeline stages of `tp_size` ranks.

    `device` is "cpu", "sim:K" or "cuda:K"; `model_path` a local folder. Sampling is greedy and
    seeded, so that all ranks of all runs see the same tokens. 4096 KV tokens; 256 tokens per chunk.
    """
    kind = device.partition(":")[0]
    if kind not in _KIND:
        raise UsageError(f"device {device!r}: server args are known for {', '.join(_KIND)}")
    return {
        "model_path": model_path,
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "device": kind,
        "pp_size": num_stages,
        "tp_size": tp_size,
        "random_seed": 42,
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_overlap_schedule": True,
        "disable_cuda_graph": True,
        "chunked_prefill_size": _CHUNK,
        "max_total_tokens": 4096,
        "max_running_requests": _REQUESTS,
        "mem_fraction_static": 0.5,
        "page_size": 1,
        "watchdog_timeout": _NEVER_S,
        "log_level": "warning",
        **_KIND[kind],
    }


def args_of_role(changes: Mapping[str, object], role: str) -> dict[str, object]:
    """Return the server args that a test's markers give to `role`.

    In a prefill/decode group, ``prefill={...}`` and ``decode={...}`` override those for both roles.
    Raises UsageError if they are not mappings.
    """
    if role == "pp":
        return dict(changes)
    for name in _ROLES:
        if not isinstance(changes.get(name, {}), Mapping):
            raise UsageError(
                f"@pytest.mark.sglang({name}={changes[name]!r}): a dict of server args for the "
                f"stages of {name}"
            )
    own = changes.get(role, {})
    assert isinstance(own, Mapping)
    return {**{name: value for name, value in changes.items() if name not in _ROLES}, **own}


def disagg_args(role: str, device: str, known: Container[str]) -> dict[str, object]:
    """Return the server args that make a stage one of prefill or decode; empty for ``pp``.

    `known`: the names of all server args of the installed SGLang.
    """
    if role == "pp":
        return {}
    args: dict[str, object] = {
        "disaggregation_mode": role,
        "disaggregation_transfer_backend": "mooncake",
    }
    backup = "disaggregation_decode_retraction_backup"
    if role == "decode" and not device.startswith("cuda") and backup in known:
        args[backup] = "cpu_tensor"  # the default registers host memory with CUDA
    return args


def shares_args(dp_size: int, ep_size: int, known: Container[str]) -> dict[str, object]:
    """Return the server args for DP ranks and EP ranks, as far as a stage has several.

    `known`: see `disagg_args`. Up to 0.5.22 two args together mean DP attention. SGLang divides two
    limits among the DP ranks: the defaults are what each of them gets.
    """
    args: dict[str, object] = {}
    if dp_size > 1:
        args["chunked_prefill_size"] = _CHUNK * dp_size
        args["max_running_requests"] = _REQUESTS * dp_size
    if dp_size > 1 and "attn_dp_size" in known:
        args["attn_dp_size"] = dp_size
    elif dp_size > 1:
        args |= {"dp_size": dp_size, "enable_dp_attention": True}
    if ep_size > 1:
        args["ep_size"] = ep_size
    return args


def merge(defaults: Mapping[str, object], *changes: Mapping[str, object]) -> dict[str, object]:
    """Return `defaults` with `changes` laid over them, later ones over earlier ones."""
    merged = dict(defaults)
    for change in changes:
        merged.update(change)
    return merged


_KIND: dict[str, dict[str, object]] = {
    "cpu": {"dtype": "float32", "attention_backend": "torch_native"},
    "sim": {"dtype": "float32", "attention_backend": "torch_native"},
    # sgl_kernel's rmsnorm has no float32 path (FACTS, two H200s).
    "cuda": {"dtype": "float16", "attention_backend": "triton"},
}
