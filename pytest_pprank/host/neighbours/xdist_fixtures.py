"""The fixtures of pytest-xdist, for ranks (see xdist)."""

from __future__ import annotations

import os
import uuid

import pytest

from pytest_pprank.rank.handle import Pprank


@pytest.fixture(scope="session")
def worker_id() -> str:
    """The id of the xdist worker this rank belongs to, or ``master``."""
    return os.environ.get("PYTEST_XDIST_WORKER", "master")


@pytest.fixture(scope="session")
def testrun_uid(pprank: Pprank) -> str:
    """The id of the test run, the same on all ranks."""
    own = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    return str(pprank.broadcast(own))
