"""pytest-xdist: its fixtures have the same values on a rank as in the rank's xdist worker."""

from __future__ import annotations

import pytest

from pytest_pprank.host.neighbours import xdist_fixtures


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures now: those of the plugin that is registered last win."""
    config.pluginmanager.register(xdist_fixtures, "pprank-xdist-fixtures")
