"""Which threads of a fork server keep it from being forked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank.launch import preload

if TYPE_CHECKING:
    import pytest


def test_threads_that_end_by_themselves_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [["python", "cuda000"], ["python", "cuda000"], ["python"]]
    monkeypatch.setattr(preload, "threads_of", lambda _: seen.pop(0))
    assert preload._lasting_threads(1) == ["python"]


def test_threads_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "_THREADS_S", 0.0)
    monkeypatch.setattr(preload, "threads_of", lambda _: ["python", "jemalloc_bg_thd"])
    assert preload._lasting_threads(1) == ["python", "jemalloc_bg_thd"]
