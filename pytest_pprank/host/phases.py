"""Records the phases of a test, its fixtures and its errors in the trace of this rank."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_pprank.frames import is_caller_code
from pytest_pprank.oplog.file import Site
from pytest_pprank.trace.file import ERROR, FIXTURE, PHASE
from pytest_pprank.trace.record.trace import note, noted

_DEPTH = 8
_SIZE = "_pprank_size"


class PhaseTrace:
    """Plugin object of a rank that records a trace."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Record the setup."""
        with noted(PHASE, "setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Record the call."""
        with noted(PHASE, "call"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        """Record the teardown."""
        with noted(PHASE, "teardown"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object]
    ) -> Generator[None, object, object]:
        """Record the setup of a fixture."""
        if fixturedef.argname == _SIZE:
            return (yield)
        with noted(FIXTURE, fixturedef.argname, {"scope": fixturedef.scope}):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Record what a phase has raised, before its report is written, which takes a while."""
        if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            error = call.excinfo
            sites = [
                Site(str(entry.path), entry.lineno + 1, entry.name) for entry in error.traceback
            ]
            own = [site for site in sites if is_caller_code(site.file)] or sites
            name = f"{error.typename}: {error.value}".partition("\n")[0]
            details = {"in": call.when, "error": error.exconly()}
            note(ERROR, name, details, own[: -_DEPTH - 1 : -1])
        return (yield)
