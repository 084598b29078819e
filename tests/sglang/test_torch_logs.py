"""torch's loggers print the same as before, with fewer handlers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

JOINED = """
import json, logging, torch
from pytest_pprank.host.torch_logs import join_torch_loggers
join_torch_loggers()
alone = [
    name
    for name, logger in logging.Logger.manager.loggerDict.items()
    if isinstance(logger, logging.Logger) and name.startswith("torch.") and not logger.propagate
]
print(json.dumps([alone, logging.getLogger("torch._dynamo").propagate]))
"""


def test_loggers_that_differ_in_nothing_are_joined() -> None:
    """Runs in a separate process: here parts of torch may have been imported while stderr was
    captured, so that its loggers differ in where they print.
    """
    done = subprocess.run(
        [sys.executable, "-c", JOINED], capture_output=True, text=True, check=True
    )
    alone, dynamo_propagates = json.loads(done.stdout)
    assert len(alone) < 10, alone
    assert dynamo_propagates


def test_what_is_logged_still_reaches_who_listens(caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from pytest_pprank.host.torch_logs import join_torch_loggers

    join_torch_loggers()
    parent = logging.getLogger("torch")
    assert parent.handlers, torch.__version__
    parent.addHandler(caplog.handler)
    try:
        logging.getLogger("torch._dynamo").warning("heard once")
    finally:
        parent.removeHandler(caplog.handler)
    assert [r.message for r in caplog.records].count("heard once") == 1


def test_a_logger_set_up_in_another_way_is_left_alone() -> None:
    import torch

    from pytest_pprank.host.torch_logs import join_torch_loggers

    logger = logging.getLogger(f"torch.own.{torch.__name__}")
    logger.propagate = False
    handler = logging.NullHandler()
    logger.addHandler(handler)
    join_torch_loggers()
    assert not logger.propagate
    assert logger.handlers == [handler]
