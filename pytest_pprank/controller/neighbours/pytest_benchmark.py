"""pytest-benchmark: one row per test, with the time of the slowest rank in each round."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

_ATTRIBUTE = "pprank_benchmark"


class Neighbour:
    """Adds the measurements of ranks as if they had been made here."""

    def __init__(self, config: pytest.Config) -> None:
        self._session: Any = getattr(config, "_benchmarksession", None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the measurements of a report."""
        measured = getattr(report, _ATTRIBUTE, None)
        if measured and self._session is not None and not self._session.disabled:
            self._session.benchmarks.append(_measured(measured, failed=report.failed))


def _measured(measured: Mapping[str, Mapping[str, Any]], *, failed: bool) -> Any:
    from pytest_benchmark.stats import Metadata

    first = measured[min(measured)]
    names = ("name", "fullname", "group", "param", "params", "extra_info")
    of_test = {name: first.get(name) for name in names}
    fixture = SimpleNamespace(**of_test, cprofile_stats=None, has_error=failed)
    made = Metadata(fixture, first["iterations"], first["options"])
    for one_round in zip(*(each["data"] for each in measured.values()), strict=False):
        made.stats.update(max(one_round))
    return made
