"""Who waits for whom, as a graph: the ranks on a ring, and an arrow for each wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.report.page.plain import plain

_NODE = 30.0
_STEP = 70.0
"""Room for a rank on the ring, in units of the picture."""
_MARGIN = 34.0


@dataclass(frozen=True)
class Node:
    """A rank: where it is in the picture, and in the test. `stuck`: it can never go on."""

    rank: int
    x: float
    y: float
    place: str
    stuck: bool
    waits: bool


@dataclass(frozen=True)
class Edge:
    """A wait of one rank for another: its number in the list below the picture, and its path."""

    number: int
    source: int
    target: int
    path: str
    x: float
    y: float
    certain: bool


@dataclass(frozen=True)
class Wait:
    """A line of the list: what a rank waits in, and for whom."""

    number: int
    text: str
    certain: bool


@dataclass(frozen=True)
class WaitGraph:
    """The picture and its list. `box`: its viewBox; `lines`: what the ledgers show."""

    box: str
    nodes: list[Node]
    edges: list[Edge]
    waits: list[Wait]
    lines: list[str]


def graph_of(waits: Waits, places: Mapping[int, str]) -> WaitGraph | None:
    """Return the graph of a hang; None if nobody waits for a rank."""
    blocked = [each for each in waits.blocked if each.missing]
    if not blocked:
        return None
    involved = {rank for each in blocked for rank in (each.rank, *each.missing)}
    spots = _ring(sorted(involved | set(places)))
    waiting = {each.rank for each in blocked}
    nodes = [
        Node(rank, x, y, plain(places.get(rank, "")), rank in waits.stuck, rank in waiting)
        for rank, (x, y) in spots.items()
    ]
    edges, listed = [], []
    for number, each in enumerate(blocked, start=1):
        text = f"{each.waiter} waits in {each.where(each.missing[0])}"
        listed.append(Wait(number, plain(text), each.certain))
        for target in each.missing:
            path, x, y = _arc(spots[each.rank], spots[target])
            edges.append(Edge(number, each.rank, target, path, x, y, each.certain))
    return WaitGraph(
        _box(spots.values()), nodes, edges, listed, [plain(line) for line in waits.lines]
    )


def _ring(ranks: list[int]) -> dict[int, tuple[float, float]]:
    """Return a place for each rank: two beside each other, more on a circle from the top on."""
    first = math.pi if len(ranks) < 3 else -math.pi / 2
    radius = max(_STEP, _STEP * len(ranks) / math.tau * 1.5)
    turn = math.tau / len(ranks)
    spots = [(math.cos(first + turn * n), math.sin(first + turn * n)) for n in range(len(ranks))]
    return {
        rank: (round(radius * x, 1), round(radius * y, 1))
        for rank, (x, y) in zip(ranks, spots, strict=True)
    }


def _box(spots: Iterable[tuple[float, float]]) -> str:
    """Return the part of the plane that the picture shows, as the viewBox of an SVG has it."""
    xs, ys = zip(*spots, strict=True)
    left, top = min(xs) - _MARGIN, min(ys) - _MARGIN
    width, height = max(xs) + _MARGIN - left, max(ys) + _MARGIN - top
    return f"{left:g} {top:g} {width:g} {height:g}"


def _arc(source: tuple[float, float], target: tuple[float, float]) -> tuple[str, float, float]:
    """Return a bent path from edge to edge of two ranks, and where its number stands.

    Bent to the right, so that two ranks that wait for each other have two arrows.
    """
    (ax, ay), (bx, by) = source, target
    length = math.hypot(bx - ax, by - ay) or 1.0
    ux, uy = (bx - ax) / length, (by - ay) / length
    bend = 0.22 * length
    mx, my = (ax + bx) / 2 - uy * bend, (ay + by) / 2 + ux * bend
    start, end = _towards(source, (mx, my)), _towards(target, (mx, my))
    path = f"M{start[0]:.1f},{start[1]:.1f} Q{mx:.1f},{my:.1f} {end[0]:.1f},{end[1]:.1f}"
    x, y = (start[0] + end[0] + 2 * mx) / 4, (start[1] + end[1] + 2 * my) / 4
    return path, round(x, 1), round(y, 1)


def _towards(spot: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    length = math.hypot(other[0] - spot[0], other[1] - spot[1]) or 1.0
    by = (_NODE - 4) / length
    return spot[0] + (other[0] - spot[0]) * by, spot[1] + (other[1] - spot[1]) * by
