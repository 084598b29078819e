"""pytest-xdist: its fixtures say on a rank what they say in the worker that has started it."""

from __future__ import annotations

import pytest

from pytest_pprank.host.neighbours import xdist_fixtures


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixtures now: those of the plugin that is registered last win."""
    config.pluginmanager.register(xdist_fixtures, "pprank-xdist-fixtures")
