"""SGLang's layers as kernels of the simulated device: one operator each, as on a GPU.

On a GPU each of SGLang's normalisations, activations, rotary embeddings and attentions is one
kernel. On an out-of-tree platform SGLang runs them as torch operators (``forward_native``, and the
backend "torch_native"): about a hundred per layer, each of which device sim checks. Here a whole
layer runs on the CPU aliases of its tensors with one check: same numbers, several times faster.

If SGLang has no place to register a kernel, its own operators run one by one: slower, same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from pytest_pprank.devices.sim.fused import Launch, fused
from pytest_pprank.sglang.compat.kernels import fused_operator
from pytest_pprank.sglang.platform.sim_attention import attention_class

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import SglangObject

KEY = "pprank_sim"
"""The name of this platform in SGLang's BaseFusedOp."""

_LAYERS = {
    "sglang.srt.layers.layernorm": ("RMSNorm",),
    "sglang.srt.layers.activation": ("SiluAndMul", "GeluAndMul"),
    "sglang.srt.layers.rotary_embedding.base": ("RotaryEmbedding",),
}
"""Layers whose ``forward_native`` modifies none of its input tensors."""


def dispatch_key(otherwise: str) -> str:
    """Return the name by which SGLang's operators find this platform; `otherwise` without one."""
    return otherwise if fused_operator() is None else KEY


def register() -> None:
    """Register the kernels with the installed SGLang, wherever it has a place for them."""
    operator = fused_operator()
    for cls in _layers() if operator is not None else ():
        operator.register_oot_forward(cls, _layer_kernel(cls), KEY)
    with suppress(ModuleNotFoundError, AttributeError):
        registry = import_module("sglang.srt.layers.attention.attention_registry")
        registry.ATTENTION_BACKENDS["torch_native"] = attention_class()
    with suppress(ModuleNotFoundError, AttributeError):
        # Triton has one kernel for this; the native version makes the host wait for each length
        batch_info: Any = import_module("sglang.srt.model_executor.forward_batch_info")
        native = batch_info.compute_position_torch
        batch_info.compute_position_torch = fused("compute_position", native)


def register_grammar() -> None:
    """Make SGLang's xgrammar backend accept logits of the simulated device."""
    cls = import_module("sglang.srt.constrained.xgrammar_backend").XGrammarGrammar
    native = cls.apply_vocab_mask
    if getattr(native, "is_of_sim", False):
        return

    def apply_vocab_mask(
        self: SglangObject, logits: torch.Tensor, vocab_mask: torch.Tensor
    ) -> None:
        launch = Launch("apply_token_bitmask")
        given = launch.writes(logits, "logits"), launch.reads(vocab_mask, "vocab_mask")
        launch.check()
        native(self, *given)

    apply_vocab_mask.is_of_sim = True  # type: ignore[attr-defined]
    cls.apply_vocab_mask = apply_vocab_mask


def _layers() -> Iterator[Any]:
    for module, names in _LAYERS.items():
        with suppress(ModuleNotFoundError):
            found = import_module(module)
            yield from (getattr(found, name) for name in names if hasattr(found, name))


def _layer_kernel(cls: Any) -> Callable[..., object]:
    """Return a forward that runs a layer's native one on a copy of the layer on the CPU."""
    native, name = cls.forward_native, cls.__name__

    def forward(self: SglangObject, *args: object, **kwargs: object) -> object:
        if self._modules or torch.is_grad_enabled():
            return native(self, *args, **kwargs)
        launch = Launch(name)
        given = [launch.reads(value) for value in args]
        named = {key: launch.reads(value, key) for key, value in kwargs.items()}
        layer = object.__new__(cls)
        attributes = vars(layer)
        attributes.update(vars(self))
        for tensors in (vars(self), self._parameters, self._buffers):
            for key, value in tensors.items():
                if isinstance(value, torch.Tensor):
                    attributes[key] = launch.reads(value, key)
        launch.check()
        return launch.results(native(layer, *given, **named))

    return forward
