"""The command that writes a test for SGLang's own tree.

tests/sglang/test_sglangs_runner.py gives such files to SGLang's runner.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.bench.new_test import SEAMS

RUNNER = 'SUITES = {"cpu": ["base-a-test-cpu", "base-b-test-cpu", "base-b-test-cpu-arm64"]}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkout(folder: Path) -> Path:
    """What of a checkout of SGLang counts here, as the current folder."""
    for name in ("pp", "disaggregation"):
        (folder / "test/registered" / name).mkdir(parents=True)
    (folder / "test/run_suite.py").write_text(RUNNER)
    return folder


@pytest.mark.parametrize("seam", SEAMS)
def test_file_is_registered_and_runs_as_a_program(
    folder: Path, capsys: pytest.CaptureFixture[str], seam: str
) -> None:
    assert main(["new-test", "kv-leak", "--seam", seam]) == 0
    file = folder / "test_kv_leak.py"
    assert capsys.readouterr().out == f"new-test: {file.name}\n"
    text = file.read_text()
    compile(text, str(file), "exec")
    calls = [it.value for it in ast.parse(text).body if isinstance(it, ast.Expr)]
    registered = [ast.unparse(it) for it in calls if isinstance(it, ast.Call)]
    seconds = SEAMS[seam].seconds
    assert registered == [f"register_cpu_ci(est_time={seconds}, suite='base-b-test-cpu')"]
    assert "\ndef test_kv_leak(" in text
    last = 'if __name__ == "__main__":\n    sys.exit(pytest.main([__file__, "-p", "pytest_pprank"'
    assert last in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("seam", "where"),
    [("pp", "pp"), ("profiler", "pp"), ("disagg", "disaggregation")],
)
def test_in_a_checkout_it_goes_where_sglangs_runner_looks(
    checkout: Path, seam: str, where: str
) -> None:
    assert main(["new-test", "x", "--seam", seam, "--suite", "base-a-test-cpu"]) == 0
    assert (checkout / "test/registered" / where / "test_x.py").is_file()


@pytest.mark.parametrize("output", ["inner", "inner/test_x.py"])
def test_output_is_a_folder_or_a_file(folder: Path, output: str) -> None:
    (folder / "inner").mkdir()
    assert main(["new-test", "x", "--seam", "pp", "--output", output, "--est-time", "9"]) == 0
    assert "register_cpu_ci(est_time=9, " in (folder / "inner/test_x.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/b", "--seam", "pp"], "'a/b' is no name"),
        (["x", "--seam", "pp", "--est-time", "0"], "--est-time: 0 is not a number of seconds"),
        (["x", "--seam", "pp", "--suite", "a b"], "--suite: 'a b' is not the name of a suite"),
        (["x", "--seam", "pp", "--output", "mine.py"], "a file must be called test_*.py"),
        (["x", "--seam", "pp", "--output", "no/test_x.py"], "there is no folder no"),
        (["there", "--seam", "pp"], "test_there.py is there already"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (folder / "test_there.py").write_text("mine")
    assert main(["new-test", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert [it.name for it in folder.iterdir()] == ["test_there.py"]
    assert (folder / "test_there.py").read_text() == "mine"


def test_suite_that_the_checkout_lacks(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-test", "x", "--seam", "pp", "--suite", "base-c-test-cpu"]) == 2
    said = capsys.readouterr().err
    assert "'base-c-test-cpu' is no suite of" in said
    assert "allowed: base-a-test-cpu, base-b-test-cpu, base-b-test-cpu-arm64" in said
    assert not list(checkout.rglob("test_x.py"))


def test_unknown_seam(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["new-test", "x", "--seam", "tp"])
    assert end.value.code == 2
    assert "invalid choice: 'tp' (choose from" in capsys.readouterr().err
