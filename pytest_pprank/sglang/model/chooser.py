"""How a request's sampling params change which token is chosen: penalties, biases, and the seed.

Written from the definitions of the params, not from SGLang's code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_pprank.sglang.platform.seeds import gumbel_noise

if TYPE_CHECKING:
    import torch

    from pytest_pprank.sglang.compat.objects import Options

_CUTS = ("top_k", "top_p", "min_p")
"""Params that cut the distribution: which token a seed chooses then depends on the kernel."""


@dataclass(frozen=True)
class Chooser:
    """The sampling params of a request that its tokens and logprobs depend on.

    `bias`: token and what is added to its logit. `forbidden`: the tokens that may not be among the
    first `min_new_tokens`. `temperature` is 1 if the request is greedy; then `seed` is None.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    forbidden: tuple[int, ...] = ()
    temperature: float = 1.0
    seed: int | None = None

    def logits(self, logits: torch.Tensor, tokens: Iterable[int]) -> torch.Tensor:
        """Return `logits` [n, vocabulary], before each of the n output `tokens`, as changed."""
        import torch

        counts = torch.zeros_like(logits)
        for index, token in enumerate([*tokens][:-1]):
            counts[index + 1 :, token] += 1
        seen = counts > 0
        changed = logits - self.frequency * counts - self.presence * seen
        barred = [*self.forbidden]
        changed[: self.min_new_tokens, barred] = -torch.inf
        scaled = torch.where(changed < 0, changed * self.repetition, changed / self.repetition)
        changed = torch.where(seen, scaled, changed)
        for token, value in self.bias:
            changed[:, token] += value
        return changed / self.temperature

    def choose(self, logits: torch.Tensor, first: int) -> torch.Tensor:
        """Return the tokens to choose by changed logits; `first`: position of the first one."""
        import torch

        if self.seed is None:
            return logits.argmax(-1)
        # SGLang counts the position of the token before
        positions = torch.arange(first - 1, first - 1 + len(logits))
        noise = gumbel_noise(self.seed, positions, logits.shape[-1])
        return (logits.log_softmax(-1).double() + noise).argmax(-1)


def chooser_of(sampling: Options, ends: Iterable[int]) -> Chooser:
    """Return the Chooser of SGLang's sampling params; `ends`: the model's end-of-text tokens."""
    greedy = not sampling.get("temperature")
    bias = sampling.get("logit_bias") or {}
    return Chooser(
        frequency=float(sampling.get("frequency_penalty") or 0.0),
        presence=float(sampling.get("presence_penalty") or 0.0),
        repetition=float(sampling.get("repetition_penalty") or 1.0),
        bias=tuple(sorted((int(token), float(value)) for token, value in bias.items())),
        min_new_tokens=int(sampling.get("min_new_tokens") or 0),
        forbidden=tuple(sorted({*(sampling.get("stop_token_ids") or ()), *ends})),
        temperature=1.0 if greedy else float(sampling["temperature"]),
        seed=None if greedy else sampling.get("sampling_seed"),
    )


def unpredictable(sampling: Options) -> str:
    """Return which params make the tokens unpredictable for the reference; "" if none does."""
    if not sampling.get("temperature"):
        return ""
    names = ["temperature", *(name for name in _CUTS if sampling.get(name) is not None)]
    if sampling.get("sampling_seed") is not None and len(names) == 1:
        return ""
    return ", ".join(f"{name}={sampling[name]!r}" for name in names)
