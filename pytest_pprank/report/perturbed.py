"""What a failure says of the perturbation that its test ran under, and how to have it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from pytest_pprank.planning import Plan
from pytest_pprank.words import plural_ranks


def perturbed_lines(plan: Plan, nodeid: str, did: Mapping[int, str]) -> Iterator[str]:
    """Yield nothing for a test that was not perturbed. `did`: in words, by rank (those that have
    come to the end of the test).
    """
    if plan.perturb is None:
        return
    yield f"perturbed: seed {plan.perturb.seed} ({', '.join(plan.perturb.names)})"
    by_words: dict[str, list[int]] = {}
    for rank, words in sorted(did.items()):
        by_words.setdefault(words or "nothing came of it", []).append(rank)
    yield from (f"  {plural_ranks(ranks)}: {words}" for words, ranks in by_words.items())
    yield f"to repeat: {_command(plan, nodeid)}"


def _command(plan: Plan, nodeid: str) -> str:
    topology = plan.topology
    words = ["pytest", "--pp-size", str(topology.pp)]
    words += ["--pprank-decode", str(topology.decode)] if topology.decode else []
    words += ["--pprank-device", topology.device, "--pprank-perturb", str(plan.perturb), nodeid]
    return shlex.join(words)
