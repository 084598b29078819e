"""Server args that SGLang's Scheduler would start with, and its launcher refuses."""

import pytest

ARGS = {"chunked_prefill_size": 100, "page_size": 64}


@pytest.mark.sglang(**ARGS)
def test_refused(scheduler): ...


@pytest.mark.pprank(prefill=1, decode=1)
@pytest.mark.sglang(prefill=ARGS)
def test_refused_of_one_role(disagg): ...
