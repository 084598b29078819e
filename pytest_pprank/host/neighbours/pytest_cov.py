"""pytest-cov: measure on this rank too; the controller puts all data together.

The rank's data lies in a file of its own in a folder that the controller names. It is brought up
to date after every test, so that a rank that dies takes along no more than its last test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coverage
import pytest
from pytest_cov.engine import CovController
from pytest_cov.plugin import CovPlugin

FOLDER_OPTION = "pprank_coverage"
"""Option in which a rank finds the folder; controller.rank_config sets it."""

SOURCE_OPTION = "pprank_coverage_source"
"""What --cov was given; under its own name pytest-cov would start as if it were alone."""

# a rank need not run all that is to be measured; that is for the controller to say
_OTHERS_BUSINESS = [
    "module-not-imported",
    "module-not-measured",
    "no-data-collected",
    "no-sysmon-context",
]


class RankCoverage(CovController):  # type: ignore[misc]  # untyped
    """Measures as pytest-cov was told to, and reports nothing."""

    def start(self) -> None:
        """Begin to measure."""
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
        """Measure no more, and write what has been measured."""
        self.started = False
        self.cov.stop()
        self.cov.save()

    def write(self) -> None:
        """Write what has been measured so far."""
        if self.started and not self.cov.get_option("run:dynamic_context"):
            self.cov.switch_context("")  # unlike save(), without a search for untouched files


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start before anything of the user's is imported."""
    options = early_config.known_args_namespace
    if not getattr(options, FOLDER_OPTION, None):
        return  # not asked to measure
    source = getattr(options, SOURCE_OPTION)
    options.cov_source = [True] if source is None else source
    options.cov_report = {"": None}
    options.cov_fail_under = 0
    plugin = CovPlugin(options, early_config.pluginmanager, start=False)
    plugin._is_worker = lambda _: False  # no worker of the kind that it knows
    plugin.start(RankCoverage)
    early_config.pluginmanager.register(plugin, "_cov")
    early_config.pluginmanager.register(_Writer(plugin.cov_controller))


class _Writer:
    def __init__(self, rank_coverage: Any) -> None:
        self._coverage = rank_coverage

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """Keep what this test has run."""
        self._coverage.write()
