"""A Scheduler that fails to start."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.pprank(pp=1), pytest.mark.sglang(attention_backend="nope")]


def test_of_the_same_group(pprank):
    Path("run-name").write_text(pprank.workdir.parent.name)


def test_without_a_scheduler(scheduler):
    pass
