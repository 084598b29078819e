"""Describes the perturbation of a failed test. (`again` has the command that repeats it.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_pprank.planning import Plan
from pytest_pprank.words import plural_ranks


def perturbed_lines(plan: Plan, did: Mapping[int, str]) -> Iterator[str]:
    """Yield the description; nothing for a test that was not perturbed.

    `did`: what the perturbations did, in words, by rank, for ranks that have finished the test.
    """
    if plan.perturb is None:
        return
    yield f"perturbed: seed {plan.perturb.seed} ({', '.join(plan.perturb.names)})"
    by_words: dict[str, list[int]] = {}
    for rank, words in sorted(did.items()):
        by_words.setdefault(words or "nothing came of it", []).append(rank)
    yield from (f"  {plural_ranks(ranks)}: {words}" for words, ranks in by_words.items())
