"""The engine only replaces attributes that the Scheduler has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank.errors import SeamMissing
from pytest_pprank.sglang.driver.scheduler_hooks import Attachment


def test_a_place_that_sglang_lacks_is_named() -> None:
    """Otherwise it would set a hook that is never called, and the loop would never stop."""
    attachment: Any = object.__new__(Attachment)
    attachment._undo = []
    scheduler = SimpleNamespace(there="before")
    with pytest.raises(SeamMissing, match="scripted_scheduler_hook"):
        attachment._set(scheduler, "scripted_scheduler_hook", "ours")
    attachment._set(scheduler, "there", "ours")
    attachment.detach()
    assert vars(scheduler) == {"there": "before"}
