"""pytest-memray: each rank has files of its own; the controller makes one report of all."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pprank.rank.context import current_rank

_MANAGER = "memray_manager"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Name the files after the rank, inside the controller's folder."""
    config = session.config
    manager: Any = config.pluginmanager.get_plugin(_MANAGER)
    if manager is not None:
        name = f"pp{current_rank().rank}"
        manager._bin_prefix = f"{manager._bin_prefix}-{name}"
        manager.result_metadata_path /= name
        manager.result_metadata_path.mkdir(parents=True, exist_ok=True)
