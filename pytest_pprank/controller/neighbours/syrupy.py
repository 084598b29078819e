"""syrupy: ranks compare and write snapshots; the controller finds unused ones.

Ranks report which snapshots they have used, as workers of pytest-xdist do. Once a worker has
reported something, syrupy assumes that only workers have run tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from typing import Any

import pytest

from pytest_pprank.controller.nodes import RankNode
from pytest_pprank.planning import plan_of

_TOO_OLD = (
    "--snapshot-update: this syrupy would delete the snapshots of ranked tests, as it does not "
    "hear which of them ranks have used; install syrupy>=6"
)


class Neighbour:
    """Completes syrupy's data on the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lost = False
        self._in_use = True  # unless collection shows otherwise; a controller of xdist has none

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note whether ranked tests use snapshots at all."""
        ranked = [item for item in session.items if plan_of(item) is not None]
        self._in_use = any("snapshot" in getattr(item, "fixturenames", ()) for item in ranked)
        syrupy: Any = getattr(self._config, "_syrupy", None)
        old = syrupy is not None and not hasattr(syrupy, "add_worker_report")
        if self._in_use and old and self._config.option.update_snapshots:
            raise pytest.UsageError(_TOO_OLD)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        """If a rank is lost, treat no snapshot as unused: the rank may have used any."""
        if not error or not isinstance(node, RankNode) or self._lost or not self._in_use:
            return
        self._lost = True
        self._config.option.disable_unused_snapshots = True
        text = "pprank: a rank is lost, and with it which snapshots it has used: none is removed"
        warnings.warn(pytest.PytestWarning(text), stacklevel=1)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Report the tests that this process has run, in addition to those of the ranks."""
        session: Any = getattr(self._config, "_syrupy", None)
        if session is not None and session._worker_reports:
            items = session._selected_items.items()
            own = {nodeid: status.value for nodeid, status in items}
            session.add_worker_report({"collections": {}, "num_xfails": 0, "selected": own})
        return (yield)
