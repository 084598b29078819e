"""pytest-xdist: its fixtures say on a rank what they say in the worker that has started it."""

from __future__ import annotations

import os
import uuid

import pytest

from pytest_pprank.worker.handle import Pprank


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixtures now: those of the plugin that is registered last win."""
    config.pluginmanager.register(_Fixtures(), "pprank-xdist-fixtures")


class _Fixtures:
    @pytest.fixture(scope="session")
    def worker_id(self) -> str:
        """The id of the xdist worker this rank belongs to, or ``master``."""
        return os.environ.get("PYTEST_XDIST_WORKER", "master")

    @pytest.fixture(scope="session")
    def testrun_uid(self, pprank: Pprank) -> str:
        """The id of the test run, the same on all ranks."""
        own = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
        return str(pprank.broadcast(own))
