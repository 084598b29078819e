"""pytest-cov: measures on this rank, too; the controller combines all data.

The rank's data is in a file of its own in a folder that the controller names. It is updated after
every test, so that a rank that dies loses no more than its last test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coverage
import pytest
from pytest_cov.engine import CovController
from pytest_cov.plugin import CovPlugin

FOLDER_OPTION = "pprank_coverage"
"""The option with the folder for the data; controller.rank_config sets it."""

SOURCE_OPTION = "pprank_coverage_source"
"""The value of --cov; under its own name pytest-cov would start as if there were no controller."""

# a rank need not run everything that is measured: the controller gives such warnings
_OTHERS_BUSINESS = [
    "module-not-imported",
    "module-not-measured",
    "no-data-collected",
    "no-sysmon-context",
]


class RankCoverage(CovController):  # type: ignore[misc]  # untyped
    """Measures with pytest-cov's settings, and reports nothing."""

    def start(self) -> None:
        """Start to measure."""
        folder = Path(getattr(self.config.option, FOLDER_OPTION))
        self.cov: Any = coverage.Coverage(
            data_file=str(folder / "data"),
            data_suffix=True,
            source=self.cov_source,
            branch=self.cov_branch,
            config_file=self.cov_config,
        )
        self.cov.set_option("run:disable_warnings", _OTHERS_BUSINESS)
        self.cov.start()
        self.started = True

    def finish(self) -> None:
        """Stop measuring, and write the data."""
        self.started = False
        self.cov.stop()
        self.cov.save()

    def write(self) -> None:
        """Write the data measured so far."""
        if self.started and not self.cov.get_option("run:dynamic_context"):
            self.cov.switch_context("")  # unlike save(), without a search for untouched files


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start before any of the user's modules is imported."""
    options = early_config.known_args_namespace
    if not getattr(options, FOLDER_OPTION, None):
        return  # not asked to measure
    source = getattr(options, SOURCE_OPTION)
    options.cov_source = [True] if source is None else source
    options.cov_report = {"": None}
    options.cov_fail_under = 0
    plugin = CovPlugin(options, early_config.pluginmanager, start=False)
    plugin._is_worker = lambda _: False  # not a worker of xdist
    plugin.start(RankCoverage)
    early_config.pluginmanager.register(plugin, "_cov")
    early_config.pluginmanager.register(_Writer(plugin.cov_controller))


class _Writer:
    def __init__(self, rank_coverage: Any) -> None:
        self._coverage = rank_coverage

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """Write the coverage of this test."""
        self._coverage.write()
