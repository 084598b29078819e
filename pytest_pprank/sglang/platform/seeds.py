"""The noise of a sampling seed without SGLang's kernels, which are Triton's or for AMX.

SGLang chooses a token by the largest logprob plus Gumbel noise. The noise of each token is a hash
(MurmurHash3, 32 bits) of the seed, the position of the previous token, and the token.
"""

from __future__ import annotations

from importlib import import_module

import torch

from pytest_pprank.sglang.compat.seams import need

_BITS = 0xFFFFFFFF


def use_own_hash() -> None:
    """Let SGLang's sampler call `murmur_hash32` of this module, in this process."""
    sampler = import_module("sglang.srt.layers.sampler")
    need(sampler, "murmur_hash32")
    setattr(sampler, "murmur_hash32", murmur_hash32)  # noqa: B010


def murmur_hash32(
    seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor
) -> torch.Tensor:
    """Return the hashes [n, m] as int64, from 0 to 2**32 - 1, of n seeds and m tokens."""
    seeds = seed.to(torch.int64)
    mixed = torch.zeros_like(seeds)
    for part in (seeds & _BITS, (seeds >> 32) & _BITS, positions.to(torch.int64) & _BITS):
        mixed = _mix(mixed, part)
    mixed = _mix(mixed[:, None], col_indices.to(torch.int64)[None, :]) ^ 16  # bytes hashed
    mixed = _times(mixed ^ (mixed >> 16), 0x85EBCA6B)
    mixed = _times(mixed ^ (mixed >> 13), 0xC2B2AE35)
    return mixed ^ (mixed >> 16)


def gumbel_noise(seed: int, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return the noise [n, vocabulary] as float64 that a seed adds at n positions."""
    seeds = torch.full_like(positions, seed)
    uniform = murmur_hash32(seeds, positions, torch.arange(vocabulary)).double() / _BITS
    least = torch.finfo(torch.float64).min
    return -(-uniform.log().clamp(min=least, max=-(2.0**-32))).log()


def _mix(mixed: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    part = _times(_rotate(_times(part, 0xCC9E2D51), 15), 0x1B873593)
    return (_times(_rotate(mixed ^ part, 13), 5) + 0xE6546B64) & _BITS


def _rotate(value: torch.Tensor, bits: int) -> torch.Tensor:
    return ((value << bits) | (value >> (32 - bits))) & _BITS


def _times(value: torch.Tensor, factor: int) -> torch.Tensor:
    """Multiply modulo 2**32; int64 wraps around modulo 2**64, which keeps the low bits right."""
    return (value * factor) & _BITS
