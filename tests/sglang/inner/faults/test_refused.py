"""Server args that SGLang's Scheduler would start with, but its launcher refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_pprank import Disagg

ARGS = {"chunked_prefill_size": 100, "page_size": 64}


@pytest.mark.sglang(**ARGS)
def test_refused(scheduler: Any) -> None: ...


@pytest.mark.pprank(pp=1, tp=2)
@pytest.mark.sglang(**ARGS)
def test_refused_with_sizes(scheduler: Any) -> None: ...


@pytest.mark.pprank(prefill=1, decode=1)
@pytest.mark.sglang(prefill=ARGS)
def test_refused_of_one_role(disagg: Disagg) -> None: ...
