"""Test pipeline-parallel and disaggregated inference on real ranks, with pytest.

This package is itself the pytest plugin (``-p pytest_pprank``). It imports neither torch nor
SGLang; the assertions below do when they are called.

PYTEST_DONT_REWRITE: ranks are forked with this package already imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_pprank._version import __version__
from pytest_pprank.errors import PprankError, SeamMissing, UsageError
from pytest_pprank.plugin import (  # noqa: F401  (this module is the plugin object)
    pytest_addhooks,
    pytest_addoption,
    pytest_collection,
    pytest_collection_modifyitems,
    pytest_configure,
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

_ASSERTIONS = (
    "assert_kv_balanced",
    "assert_materialized_on_device",
    "assert_no_pending_copies",
    "assert_profiler_ready",
    "assert_ranks_agree",
    "assert_staging_consumed",
    "assert_tokens_equal_reference",
)

__all__ = [
    "PprankError",
    "SeamMissing",
    "UsageError",
    "__version__",
    "assert_kv_balanced",
    "assert_materialized_on_device",
    "assert_no_pending_copies",
    "assert_profiler_ready",
    "assert_ranks_agree",
    "assert_staging_consumed",
    "assert_tokens_equal_reference",
]


def __getattr__(name: str) -> Any:
    if name in _ASSERTIONS:
        from pytest_pprank import assertions

        return getattr(assertions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
