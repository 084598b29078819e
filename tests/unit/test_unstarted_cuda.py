"""Questions about GPUs while modules are imported, with a driver's answers that are made up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_pprank.devices import unstarted_cuda
from pytest_pprank.devices.unstarted_cuda import check_answers, driver_started, hidden, unstarted
from pytest_pprank.errors import PprankError
from pytest_pprank.launch import preload
from pytest_pprank.launch.launcher import unsafe_to_fork

torch: Any = pytest.importorskip("torch")

H200 = {"name": "NVIDIA H200", "major": 9, "minor": 0, "total_memory": 1 << 37, "pci_bus_id": 1}
A10 = {"name": "NVIDIA A10", "major": 8, "minor": 6, "total_memory": 1 << 34, "pci_bus_id": 2}
Say = Callable[..., None]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Iterator[Say]:
    """Let the child process say this of the box's GPUs."""

    def put(*gpus: dict[str, Any], code: str = "") -> None:
        monkeypatch.setattr(unstarted_cuda, "_ASK", code or f"print({json.dumps([*gpus])!r})")

    monkeypatch.setattr(unstarted_cuda, "_given", None)
    yield put
    assert not torch.cuda.is_available()


def test_questions_that_modules_ask(say: Say) -> None:
    say(H200, {**H200, "pci_bus_id": 7})
    before = torch.cuda.get_device_properties, torch.cuda.is_available, torch._C._get_accelerator
    with unstarted() as answers:
        taken = torch.cuda.is_available
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 2
        assert torch.cuda.current_device() == 0
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_name("cuda:1") == "NVIDIA H200"
        assert torch.cuda.get_device_properties(torch.device("cuda", 1)).pci_bus_id == 7
        assert torch.get_device_module() is torch.cuda
        with pytest.raises(AssertionError, match="Invalid device id"):
            torch.cuda.get_device_properties(2)
        with pytest.raises(AttributeError, match="multi_processor_count of a GPU's properties"):
            _ = torch.cuda.get_device_properties(0).multi_processor_count
    assert not taken()
    assert answers.started == ""
    after = torch.cuda.get_device_properties, torch.cuda.is_available, torch._C._get_accelerator
    assert after == before


def test_hidden_gpus_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_driver(*_: object) -> None:
        pytest.fail("the driver was asked")

    for owner, name in (
        (torch.cuda, "is_available"),
        (torch.cuda, "device_count"),
        (torch._C, "_get_accelerator"),
    ):
        monkeypatch.setattr(owner, name, of_the_driver)
    with hidden():
        assert not torch.cuda.is_available()
        assert torch.cuda.device_count() == 0
        if torch._C._get_privateuse1_backend_name() == "privateuseone":
            assert torch._C._get_accelerator() == torch.device("cpu")
    assert torch.cuda.is_available is of_the_driver


@pytest.mark.parametrize(
    ("gpus", "code", "why"),
    [
        ((H200, A10), "", "the GPUs are of several kinds (NVIDIA H200, NVIDIA A10)"),
        ((), "", "torch sees no GPU"),
        ((), "raise SystemExit('no driver')", "torch cannot ask the driver: no driver"),
        ((), "print('hello')", "the process that asks the driver has said 'hello\\n'"),
        ((), "pass", "the process that asks the driver has said ''"),
    ],
)
def test_where_nobody_can_answer_torch_does(say: Say, gpus: Any, code: str, why: str) -> None:
    say(*gpus, code=code)
    with unstarted() as answers:
        assert not torch.cuda.is_available()
        assert torch.cuda.device_count() == 0
        with pytest.raises((AssertionError, RuntimeError)):
            torch.cuda.current_device()  # this build has no CUDA
    assert re.sub(r":\d+", "", answers.started) == (
        f"at test_unstarted_cuda.py in test_where_nobody_can_answer_torch_does, as {why}"
    )
    assert answers.started in unsafe_to_fork(("python",), answers.started)
    check_answers(0)  # nobody was told anything


def test_what_else_the_child_prints_is_no_answer(say: Say) -> None:
    say(code=f"print('from sitecustomize'); print({json.dumps([H200])!r})")
    with unstarted():
        assert torch.cuda.get_device_name() == "NVIDIA H200"


def test_code_that_starts_cuda_without_a_question_is_named(say: Say) -> None:
    say(H200)
    with unstarted() as answers, pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.init()
    assert answers.started.startswith("at test_unstarted_cuda.py:")


def test_a_rank_on_a_gpu_of_another_kind(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    say(H200)
    with unstarted():
        assert torch.cuda.is_available()
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: unstarted_cuda.DeviceProperties(**A10)
    )
    with pytest.raises(PprankError, match=r"cuda:1 is not what .* name is 'NVIDIA A10', not"):
        check_answers(1)
    other = {**H200, "total_memory": 5, "pci_bus_id": 3}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: unstarted_cuda.DeviceProperties(**other)
    )
    check_answers(1)


def test_without_a_gpu_nothing_was_started() -> None:
    assert not driver_started()
    assert preload.cuda_started() == ""
