"""The catalogue of faults from which the chaos run draws, and what its entries share.

The faults themselves are in chaos_lonely_faults (one rank fails, or leaves its peers),
chaos_deadly_faults (one rank dies, or gets stuck) and chaos_group_faults (several ranks at once, or
something left behind). Each module registers its own faults here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from chaos_case import Case, Expected
from chaos_scene import LEDGER_SAYS, Scene, name_of

HUNG_AFTER = 4
"""Seconds until a test that is expected to hang is aborted: its marker's timeout."""

Maker = Callable[[random.Random, int, int], Case]
"""Makes a case from a random source, its number and the number of ranks."""


@dataclass(frozen=True)
class Fault:
    """An entry of the catalogue: how to make a case of it, and how many ranks it needs."""

    make: Maker
    ranks: int


FAULTS: dict[str, Fault] = {}


def fault(name: str, ranks: int = 2) -> Callable[[Maker], Maker]:
    """Register a maker in the catalogue."""

    def enter(maker: Maker) -> Maker:
        FAULTS[name] = Fault(maker, ranks)
        return maker

    return enter


def names_rank(rank: int) -> str:
    """Return a pattern of a text that names a rank, alone or in a list."""
    return rf"\branks? (?:\d+,)*{rank}\b"


def case_of(scene: Scene, name: str, source: str, expected: Expected) -> Case:
    """Wrap a scene's source; adds a test after it where the scene's place needs one."""
    after = None
    if scene.place == "session setup":
        rebuilt = f"test_{scene.tag}_{name}_rebuilt"
        again = f"def {rebuilt}(broken_{scene.tag}, pprank):\n    pass\n"
        after = Case(rebuilt, again, Expected())
    return Case(
        name=name_of(scene, name),
        source=source,
        expected=expected,
        fault=name,
        alone=scene.place.startswith("module"),
        last=scene.place == "session teardown",
        after=after,
    )


def where_peers_are(scene: Scene) -> list[str]:
    """Return patterns about the peers of a lost rank: who waits, and in which function."""
    words = [names_rank(peer) for peer in scene.others]
    words += [rf"peer_{scene.tag}"] if scene.peers_block else []
    says = LEDGER_SAYS.get(scene.peers)
    return [*words, says.format(**scene.facts)] if says else words
