"""Presents ranks to other plugins as nodes of pytest-xdist.

To other plugins a rank is a worker of xdist: it has `config.workerinput`, does not write what only
one process may write, and what it leaves in `config.workeroutput` is passed to
`pytest_testnodedown` here. If the controller itself is a worker of xdist, both hooks are called in
xdist's controller instead, so that results are combined once, in the top process.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from pytest_pprank.protocol.worker_data import pack, unpack

KEY = "pprank_nodes"
"""The key in an xdist worker's own workeroutput for what its ranks have left."""

_NOT_FOR_RANKS = ("_cov", "dsession", "terminaldistreporter")
"""Plugins whose hooks expect nodes created by xdist. (Coverage is handled in `coverage`.)"""


class RankNode:
    """A rank, with the attributes of xdist's WorkerController that plugins use.

    `workeroutput` is set when the rank has left.
    """

    def __init__(self, config: pytest.Config, workerinput: dict[str, object]) -> None:
        self.config = config
        self.workerinput = workerinput
        self.gateway = self

    @property
    def id(self) -> str:
        """The rank's name."""
        return str(self.workerinput["workerid"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class RankNodes:
    """The nodes of all worker groups of one controller."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._outer: dict[str, object] = getattr(config, "workerinput", {})
        self._testrun = self._outer.get("testrunuid", uuid.uuid4().hex)
        self._groups: dict[str, tuple[RankNode, ...]] = {}

    def up(self, group: str, world_size: int) -> tuple[bytes, ...]:
        """Let plugins configure the ranks of a new group; return the workerinput of each rank."""
        nodes = tuple(self._node(rank, world_size) for rank in range(world_size))
        self._groups[group] = nodes
        if not self._outer:
            for node in nodes:
                _call(self._config, "pytest_configure_node", node=node)
        return tuple(map(_packed, nodes))

    def _node(self, rank: int, world_size: int) -> RankNode:
        own = {
            "workerid": f"pp{rank}",
            "workercount": world_size,
            "testrunuid": self._testrun,
            "mainargv": list(sys.argv),
        }
        return RankNode(self._config, {**own, **self._outer, "pprank": rank})

    def down(self, group: str, outputs: Mapping[int, bytes], why: str) -> None:
        """Pass to plugins what the ranks of a group have left, or `why` a rank has left nothing."""
        nodes = self._groups.pop(group, ())
        entries = [
            (node.workerinput, outputs.get(rank), "" if rank in outputs else why)
            for rank, node in enumerate(nodes)
        ]
        if self._outer:
            output: dict[str, Any] = self._config.workeroutput  # type: ignore[attr-defined]
            packed = [(pack(workerinput)[0], left, error) for workerinput, left, error in entries]
            output.setdefault(KEY, []).extend(packed)
            return
        for workerinput, left, error in entries:
            _down(self._config, workerinput, left, error)


def down_with_worker(
    config: pytest.Config, entries: Iterable[tuple[bytes, bytes | None, str]]
) -> None:
    """Do for the ranks of an xdist worker what `RankNodes.down` does for the controller's own."""
    for workerinput, left, error in entries:
        _down(config, unpack(workerinput), left, error)


def _down(
    config: pytest.Config, workerinput: dict[str, object], left: bytes | None, error: str
) -> None:
    node = RankNode(config, workerinput)
    if left is not None:
        node.workeroutput = unpack(left)  # type: ignore[attr-defined]
    _call(config, "pytest_testnodedown", node=node, error=error or None)


def _call(config: pytest.Config, hook: str, **given: object) -> None:
    if not hasattr(config.hook, hook):
        return  # xdist declares the hook; without xdist it exists if a plugin implements it
    manager = config.pluginmanager
    out = [manager.get_plugin(name) for name in _NOT_FOR_RANKS]
    manager.subset_hook_caller(hook, [each for each in out if each is not None])(**given)


def _packed(node: RankNode) -> bytes:
    packed, left = pack(node.workerinput)
    if left:
        name, why = next(iter(left.items()))
        raise pytest.UsageError(f"pytest_configure_node: workerinput[{name!r}]: {why}")
    return packed
