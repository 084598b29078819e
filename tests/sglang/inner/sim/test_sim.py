"""Faults planted into real Schedulers on device sim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine, Observe


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.pprank(sanitize=list(names))


@only("h2d")
def test_host_tensor(engine: Engine, observe: Observe) -> None:
    def forget(_: Any, batch: Any) -> None:
        batch.positions = batch.positions.cpu()

    observe.on("init_new", forget)
    engine.generate([5], max_new_tokens=1)


@only("streams")
def test_forward_waits_for_nothing(
    engine: Engine, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_pp_wait_forward_dependencies", lambda: None, raising=False)
    engine.generate([5], max_new_tokens=2)


@only("h2d")
def test_staging_is_written_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.managers import scheduler as module

    original = module.resolve_forward_inputs

    def resolve(batch: Any, future_map: Any) -> None:
        staging = batch.prefill_input_ids_cpu
        original(batch, future_map)
        if staging is not None:
            staging.zero_()

    monkeypatch.setattr(module, "resolve_forward_inputs", resolve)
    engine.generate([12], max_new_tokens=1)


@only("streams")
@pytest.mark.pprank(pp=1)
@pytest.mark.sglang(disable_overlap_schedule=False)
def test_memory_of_a_download_is_freed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.Tensor.record_stream", lambda *_: None)
    for length in (5, 12, 9):
        engine.submit(length, 6)
        engine.step(1)
    engine.drain()


@pytest.fixture
def strict() -> Iterator[None]:
    from pytest_pprank.devices.sim.settings import changed

    with changed(strict=True):
        yield


@pytest.mark.usefixtures("strict")
def test_strict(engine: Engine, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    test_forward_waits_for_nothing(engine, scheduler, monkeypatch)


@pytest.mark.usefixtures("strict")
def test_unchanged(engine: Engine) -> None:
    assert_tokens_equal_reference(engine.generate([5, 17], max_new_tokens=3))


@pytest.mark.sglang(disable_overlap_schedule=False)
@pytest.mark.pprank(pp=1)
def test_unchanged_overlap(engine: Engine, scheduler: Any) -> None:
    assert scheduler.enable_overlap
    engine.generate([5, 7, 40], max_new_tokens=6)
