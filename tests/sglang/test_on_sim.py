"""Real Schedulers on the simulated device (inner/sim): h2d and streams find faults; kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run


@pytest.fixture(scope="module")
def run(inner: Callable[..., Run]) -> Run:
    return inner("sim", "--pp-size", "2", "--pprank-timeout", "100", "--pprank-device", "sim")


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            "test_host_tensor",
            [
                "h2d: a host tensor enters the model: ForwardBatch.positions is a host tensor ",
                "h2d: a host tensor inside the forward makes the host wait: H2D blocking int64[5]",
                "on ranks 0,1",
            ],
        ),
        (
            "test_forward_waits_for_nothing",
            ["streams: unordered: ", "nothing orders that after: ", " in event_loop_pp"],
        ),
        (
            "test_staging_is_written_again",
            [
                "h2d: staging rewritten: staging of resolve (int64[12]): ",
                "Tensor.zero_ writes the source, on the host; nothing orders that after: "
                "host-to-device copy of int64[12], on ",
                "in resolve_forward_inputs",
                "at test_sim.py:",
                "cure: use a fresh pinned tensor per copy",
            ],
        ),
        (
            "test_memory_of_a_download_is_freed",
            ["streams: freed in use: ", "device-to-host copy reads ", "in async_d2h", "cure"],
        ),
    ],
)
def test_fault_is_found(run: Run, test: str, words: list[str]) -> None:
    found = run.findings(f"{test}[{'pp1' if 'download' in test else 'pp2'}]")
    assert [expected for expected in words if expected not in found] == [], found


def test_strict_mode_raises_in_sglang(run: Run) -> None:
    failure = run.failure("test_strict[pp2]").partition("- sanitizers -")[0]
    assert "EventLoopFailed: SGLang's event loop failed in " in failure
    assert "SimRaceError: unordered: " in failure
    assert " in event_loop_pp" in failure


def test_unchanged_passes(run: Run) -> None:
    """The first one passes in strict mode, too."""
    assert run.outcome("test_unchanged[pp2]") == "PASSED"
    assert run.outcome("test_unchanged_overlap[pp1]") == "PASSED"


@pytest.mark.parametrize(
    "test", ["test_pipeline[pp2]", "test_overlap[pp1]", "test_disagg[prefill1-decode1]"]
)
def test_looking_is_no_access(run: Run, test: str) -> None:
    """Not even of memory that is being written at that moment."""
    assert run.outcome(test) == "PASSED", run.failure(test)


@pytest.mark.parametrize(
    "test",
    [
        "test_layers",
        "test_input_of_a_layer_must_be_ordered_before_it",
        "test_attention[_run_sdpa_forward_extend-pp1]",
        "test_attention[_run_sdpa_forward_decode-pp1]",
    ],
)
def test_layers_are_one_kernel_each(run: Run, test: str) -> None:
    name = test if "[" in test else f"{test}[pp1]"
    assert run.outcome(name) == "PASSED", run.failure(name)
