"""A Scheduler that fails to start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_pprank import Pprank

pytestmark = [pytest.mark.pprank(pp=1), pytest.mark.sglang(attention_backend="nope")]


def test_of_the_same_group(pprank: Pprank) -> None:
    Path("run-name").write_text(pprank.workdir.parent.name)


def test_without_a_scheduler(scheduler: Any) -> None:
    pass
