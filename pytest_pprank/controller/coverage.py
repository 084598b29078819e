"""pytest-cov: what the ranks have run is part of its report, without any set-up.

Each rank writes a data file (host.neighbours.pytest_cov) into a folder inside pytest's basetemp.
Just before pytest-cov combines the data files of its own processes, these files are moved beside
them. If pytest-cov does not finish (-x, Ctrl-C), no file is left where it would look.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank._pytest_compat import basetemp_of

_OURS = "pprank-coverage"


def register(config: pytest.Config) -> None:
    """Collect the ranks' coverage, if pytest-cov measures in this run."""
    plugin = config.pluginmanager.get_plugin("_cov")
    if plugin is not None and not config.option.no_cov:
        config.pluginmanager.register(RanksCoverage(plugin, basetemp_of(config)), _OURS)


def rank_options(config: pytest.Config) -> dict[str, object]:
    """Return the options that tell a rank what to measure; empty if nothing is measured."""
    ours = config.pluginmanager.get_plugin(_OURS)
    if ours is None:
        return {}
    return {
        "pprank_coverage": str(ours.folder),
        "pprank_coverage_source": config.option.cov_source,
    }


class RanksCoverage:
    """Owns the folder of the ranks' data files. `plugin` is pytest-cov's."""

    def __init__(self, plugin: Any, basetemp: Path | None) -> None:
        self._plugin = plugin
        self._shown: list[Path] = []
        self.folder = Path(tempfile.mkdtemp(prefix="pprank-coverage-", dir=basetemp))

    @pytest.hookimpl(wrapper=True, trylast=True)  # inside pytest-cov's
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Move the data files to where pytest-cov finds them, after all tests have run."""
        result = yield
        controller = self._plugin.cov_controller
        data_file = Path(controller.topdir, controller.cov.get_option("run:data_file"))
        for path in sorted(self.folder.glob("data.*")):
            if _is_whole(path):
                shown = data_file.with_name(f"{data_file.name}.{_OURS}.{path.name}")
                shutil.move(path, shown)
                self._shown.append(shown)
        if self._shown:
            # as pytest-cov does with xdist: the measured code need not run in this process
            controller.cov._warn_no_data = False
            controller.cov._warn_unimported_source = False
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Remove the folder, with data files that were not moved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Return whether a data file can be read: its rank may have been killed while writing it."""
    from coverage import CoverageData, exceptions

    data = CoverageData(basename=str(path))
    try:
        data.read()
        return True
    except exceptions.CoverageException:
        return False
    finally:
        data.close()
