"""The pipeline's dynamic-chunk profiler works, and swallows no exception (SGLang PR 26883)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_profiler_ready
from pytest_pprank.sglang.static.release import is_older_than

if TYPE_CHECKING:
    from pytest_pprank import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler


@pytest.mark.pprank(known_bug="profiler-fails-on-first-stage")
@pytest.mark.sglang(enable_dynamic_chunking=True)
def test_profiler_is_ready(scheduler: Scheduler, pprank: Pprank) -> None:
    if pprank.num_stages < 2:
        pytest.skip("SGLang sizes chunks dynamically on two stages or more")
    assert_profiler_ready(scheduler)


@pytest.mark.skipif(
    is_older_than("0.5.20"), reason="before 0.5.20 the other stages wait for a profiler that fails"
)
@pytest.mark.pprank(known_bug="profiler-samples-longer-than-the-context")
@pytest.mark.sglang(enable_dynamic_chunking=True, chunked_prefill_size=256, context_length=256)
def test_chunks_as_long_as_the_context(scheduler: Scheduler, pprank: Pprank) -> None:
    """Its samples are up to a quarter longer than a chunk, but no request may be."""
    if pprank.num_stages < 2:
        pytest.skip("SGLang sizes chunks dynamically on two stages or more")
    assert_profiler_ready(scheduler)
