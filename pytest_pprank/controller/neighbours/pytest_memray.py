"""pytest-memray: its report has a separate entry for each rank of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


class Neighbour:
    """Finds the files of ranks (host.neighbours.pytest_memray)."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self) -> None:
        """Add the results of ranks to those of this process.

        pytest-memray itself would not find them: it looks in another place.
        """
        manager: Any = self._config.pluginmanager.get_plugin("memray_manager")
        if manager is None:
            return
        from pytest_memray.plugin import Result

        files = [(None, path) for path in manager.result_metadata_path.glob("*.metadata")]
        files += [(p.parent.name, p) for p in manager.result_metadata_path.glob("pp*/*.metadata")]
        for rank, path in files:
            metadata = json.loads(path.read_text())
            name = f"{metadata['test_id']} (rank {rank[2:]})" if rank else metadata["test_id"]
            file = Path(metadata["result_file"])
            manager.results.setdefault(name, Result(name, metadata["peak_memory"], file))
