"""Test pipeline-parallel and disaggregated inference on real ranks, with pytest.

This package is itself the pytest plugin (``-p pytest_pprank``). It imports neither torch nor
SGLang: the names in `_LATER` are imported on first access.

PYTEST_DONT_REWRITE: ranks are forked with this package already imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank._version import __version__
from pytest_pprank.errors import (
    DoesNotFit,
    GroupError,
    PeerError,
    PprankError,
    SeamMissing,
    StartFailed,
    UsageError,
)
from pytest_pprank.plugin import (  # noqa: F401  (this module is the plugin object)
    pytest_addhooks,
    pytest_addoption,
    pytest_collection,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_configure_node,
    pytest_generate_tests,
    pytest_report_header,
    pytest_runtest_protocol,
    pytest_runtestloop,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)

if TYPE_CHECKING:
    from pytest_pprank.assertions import (
        assert_kv_balanced,
        assert_materialized_on_device,
        assert_no_pending_copies,
        assert_profiler_ready,
        assert_ranks_agree,
        assert_staging_consumed,
        assert_tokens_equal_reference,
    )
    from pytest_pprank.checks.base import Sanitizer, Watch
    from pytest_pprank.devices.sim.reports import SimRaceError
    from pytest_pprank.faults.base import Disturbance, Perturbation
    from pytest_pprank.protocol.findings import Finding
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.registry import CheckRow, FaultRow
    from pytest_pprank.sglang.driver.aborts import AbortLost
    from pytest_pprank.sglang.driver.clock import Clock
    from pytest_pprank.sglang.driver.disagg import Disagg
    from pytest_pprank.sglang.driver.disagg_faults import Fault
    from pytest_pprank.sglang.driver.engine import Engine
    from pytest_pprank.sglang.driver.lockstep import EventLoopFailed
    from pytest_pprank.sglang.driver.messages import Result
    from pytest_pprank.sglang.driver.series import StagesDiffer
    from pytest_pprank.sglang.driver.until import EngineStalled
    from pytest_pprank.sglang.stage.observe import Observe

_LATER = {
    "AbortLost": "sglang.driver.aborts",
    "CheckRow": "registry",
    "Clock": "sglang.driver.clock",
    "Disagg": "sglang.driver.disagg",
    "Disturbance": "faults.base",
    "Engine": "sglang.driver.engine",
    "EngineStalled": "sglang.driver.until",
    "EventLoopFailed": "sglang.driver.lockstep",
    "Fault": "sglang.driver.disagg_faults",
    "FaultRow": "registry",
    "Finding": "protocol.findings",
    "Observe": "sglang.stage.observe",
    "Perturbation": "faults.base",
    "Pprank": "rank.handle",
    "Result": "sglang.driver.messages",
    "Sanitizer": "checks.base",
    "SimRaceError": "devices.sim.reports",
    "StagesDiffer": "sglang.driver.series",
    "Watch": "checks.base",
    "assert_kv_balanced": "assertions",
    "assert_materialized_on_device": "assertions",
    "assert_no_pending_copies": "assertions",
    "assert_profiler_ready": "assertions",
    "assert_ranks_agree": "assertions",
    "assert_staging_consumed": "assertions",
    "assert_tokens_equal_reference": "assertions",
}
"""Public names that are imported on first access, each with its module."""

__all__ = [
    "AbortLost",
    "CheckRow",
    "Clock",
    "Disagg",
    "Disturbance",
    "DoesNotFit",
    "Engine",
    "EngineStalled",
    "EventLoopFailed",
    "Fault",
    "FaultRow",
    "Finding",
    "GroupError",
    "Observe",
    "PeerError",
    "Perturbation",
    "Pprank",
    "PprankError",
    "Result",
    "Sanitizer",
    "SeamMissing",
    "SimRaceError",
    "StagesDiffer",
    "StartFailed",
    "UsageError",
    "Watch",
    "__version__",
    "assert_kv_balanced",
    "assert_materialized_on_device",
    "assert_no_pending_copies",
    "assert_profiler_ready",
    "assert_ranks_agree",
    "assert_staging_consumed",
    "assert_tokens_equal_reference",
]


def __dir__() -> list[str]:
    # pytest reads every attribute of a plugin to find fixtures: that must not import torch
    asked_by = str(sys._getframe(1).f_globals.get("__name__"))
    later = () if asked_by.partition(".")[0] in ("_pytest", "pluggy") else _LATER
    return sorted({*globals(), *later})


if not TYPE_CHECKING:  # with a __getattr__, type checkers accept any name

    def __getattr__(name: str) -> object:
        if name in _LATER:
            found = getattr(import_module(f"pytest_pprank.{_LATER[name]}"), name)
            globals()[name] = found
            return found
        from pytest_pprank.errors import did_you_mean

        near = did_you_mean(name, __all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
