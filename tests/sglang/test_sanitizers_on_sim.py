"""Faults planted into real Schedulers on the simulated device: h2d and streams see them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

TESTS = """
import pytest

only = lambda *names: pytest.mark.pprank(sanitize=list(names))


@only("h2d")
def test_host_tensor(engine, observe):
    def forget(call, batch):
        batch.positions = batch.positions.cpu()
    observe.on("init_new", forget)
    engine.generate([5], max_new_tokens=1)


@only("streams")
def test_forward_waits_for_nothing(engine, scheduler, monkeypatch):
    monkeypatch.setattr(scheduler, "_pp_wait_forward_dependencies", lambda: None, raising=False)
    engine.generate([5], max_new_tokens=2)


@only("h2d")
def test_staging_is_written_again(engine, monkeypatch):
    from sglang.srt.managers import scheduler as module
    original = module.resolve_forward_inputs

    def resolve(batch, future_map):
        staging = batch.prefill_input_ids_cpu
        original(batch, future_map)
        if staging is not None:
            staging.zero_()

    monkeypatch.setattr(module, "resolve_forward_inputs", resolve)
    engine.generate([12], max_new_tokens=1)


def test_unchanged(engine):
    engine.generate([5, 17], max_new_tokens=3)


@pytest.mark.sglang(disable_overlap_schedule=False)
@pytest.mark.pprank(pp=1)
def test_unchanged_overlap(engine, scheduler):
    assert scheduler.enable_overlap
    engine.generate([5, 7, 40], max_new_tokens=6)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--pp-size", "2", "-p", "no:cacheprovider", "-v"]
    command += ["--pprank-timeout", "100", "--pprank-device", "sim"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


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
                "at test_it.py:",
                "cure: use a fresh pinned tensor per copy",
            ],
        ),
    ],
)
def test_fault_is_found(output: str, test: str, words: list[str]) -> None:
    failures = re.split(r"\n_{3,} (test_\w+)\[pp\d\] _{3,}\n", output)
    told = dict(zip(failures[1::2], failures[2::2], strict=True))
    assert test in told, output
    found = told[test].partition("- sanitizers -")[2]
    for expected in words:
        assert expected in found, told[test]


def test_unchanged_passes(output: str) -> None:
    assert "test_unchanged[pp2] PASSED" in output
    assert "test_unchanged_overlap[pp1] PASSED" in output
