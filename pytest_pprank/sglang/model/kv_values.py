"""Copies of each request's KV, taken when it freed its slot, to compare with the reference.

The comparison shows where wrong tokens begin. Copies are kept for one test, on ranks whose KV pool
can be read without a device copy and has keys and values per layer (so not with latent attention),
and only up to `_MOST_BYTES` per request and `_MOST_REQUESTS` requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_pprank.sglang.events.types import KvReader, Layer, SlotFreed
from pytest_pprank.words import ranges

_MOST_BYTES = 4 << 20
_MOST_REQUESTS = 64
_SHOWN = 3
_NEAR = {"torch.float32": 1e-3, "torch.float16": 2e-2, "torch.bfloat16": 1e-1}
"""Tolerance by dtype: keys and values are of order 1, and SGLang sums in another order."""


@dataclass(frozen=True)
class Kept:
    """A request's KV on one rank: of this rank's layers, the first of which is layer `first`.

    `tp`: number and count of the ranks that share the layers; each has some of the heads.
    """

    first: int
    layers: tuple[Layer, ...]
    tp: tuple[int, int] = (0, 1)


class KvValues:
    """The copies of this rank, by request id. `tp`: see `Kept`."""

    def __init__(self, tp: tuple[int, int] = (0, 1)) -> None:
        self.kept: dict[str, Kept] = {}
        self._tp = tp

    def keep(self, event: SlotFreed, kv: KvReader) -> None:
        """Copy the KV of a request that is about to free its slot."""
        if event.slot is None or not event.tokens:
            return
        full = len(self.kept) >= _MOST_REQUESTS and event.rid not in self.kept
        if full or event.tokens * kv.bytes_per_token > _MOST_BYTES:
            return
        layers = kv.read(event.slot, event.tokens)
        self.kept[event.rid] = Kept(kv.first_layer, layers, self._tp)

    def of(self, rids: Iterable[str]) -> dict[str, Kept]:
        """Return the copies of these requests, as far as there are any."""
        return {rid: self.kept[rid] for rid in rids if rid in self.kept}


def first_differences(
    rid: str, kept: Mapping[str, Kept], expected: Sequence[Layer], dtype: str
) -> Iterator[str]:
    """Compare a request's KV on each rank with `expected` (all layers of the reference).

    `kept`: the rank's copies, by rank in words. Yields one line per rank: either that the KV equals
    the reference, or in which layers and tokens it begins to differ.
    """
    near = _NEAR.get(dtype, 1e-3)
    for place, found in kept.items():
        wrong = []
        for number, layer in enumerate(found.layers, found.first):
            if number < len(expected):
                text = _wrong(layer, expected[number], near, found.tp)
                wrong += [f"layer {number}: {text}"] if text else []
        layers = f"layers {found.first} to {found.first + len(found.layers) - 1}"
        shown = "; ".join(wrong[:_SHOWN]) + ("; ..." if len(wrong) > _SHOWN else "")
        yield f"KV of {rid} on {place} ({layers}): {shown or 'as in the reference'}"


def _wrong(found: Layer, expected: Layer, near: float, tp: tuple[int, int]) -> str:
    """Say which tokens' keys or values differ in a layer; "" if none do."""
    import numpy as np

    said = []
    for name, here, there in zip(("keys", "values"), found, expected, strict=True):
        count = min(len(here), len(there))
        if here.ndim == there.ndim == 3 and here.shape[1] < there.shape[1]:
            # fewer heads than ranks: several ranks have the same one
            first = tp[0] * there.shape[1] // tp[1]
            there = there[:, first : first + here.shape[1]]
        if here.shape[1:] != there.shape[1:]:
            return ""  # another layout: not comparable
        far = ~(np.abs(here[:count] - there[:count]).reshape(count, -1).max(axis=1) <= near)
        if far.any():
            said.append(f"{name} of tokens {ranges(np.flatnonzero(far).tolist())}")
    return ", ".join(said)
