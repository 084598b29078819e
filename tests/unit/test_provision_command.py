"""The setup command line, in separate processes where its exit code matters."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.provision import command, facts, pip
from pytest_pprank.provision.facts import Facts
from pytest_pprank.provision.pip import Result
from pytest_pprank.sglang.static.installed import Installed


def use(monkeypatch: pytest.MonkeyPatch, here: Facts, *, offers: bool = False) -> None:
    """Make the command see the machine `here`, without asking pip or the network."""
    monkeypatch.setattr(facts, "gather", lambda _: here)
    monkeypatch.setattr(facts, "pip_offers", lambda _: offers)
    monkeypatch.setattr(facts, "index_answers", lambda: False)
    monkeypatch.setattr(command, "complete_mooncake", lambda *_, dry: "")  # noqa: ARG005


def pip_says(monkeypatch: pytest.MonkeyPatch, *results: Result) -> list[list[str]]:
    """Make pip end with `results`, one after the other; return the list of its arguments."""
    calls: list[list[str]] = []
    left = list(results)

    def run(arguments: list[str], beat: object = None) -> Result:  # noqa: ARG001
        calls.append(list(arguments))
        return left.pop(0)

    monkeypatch.setattr(pip, "run", run)
    monkeypatch.setattr(pip, "compile_all", lambda beat=None: GOOD)  # noqa: ARG005
    return calls


BARE = Facts(sglang=None, torch=None, gpu=False, installed={})
GOOD = Result(0, "SGLang 1, torch 2", 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["setup", "--gpu"], ["'--gpu'", "--cpu", "--cuda", "--torch-only", "--dry-run"]),
        (["setup", "--cudo"], ["'--cudo'", "did you mean '--cuda'?"]),
        (["setup", "extra"], ["'extra'", "--torch-only"]),
        (["setup", "--cpu", "--cuda"], ["--cuda: not allowed with argument --cpu"]),
        (["set-up"], ["'set-up'", "setup"]),
        ([], ["COMMAND"]),
    ],
)
def test_a_bad_command_line_says_what_is_allowed(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == []


def test_an_installed_sglang_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Facts(sglang="0.5.17", torch="2.11.0", gpu=True, installed={}))
    calls = pip_says(monkeypatch)
    assert main(["setup", "--no-verify"]) == 0
    assert calls == []
    assert "SGLang 0.5.17 is installed; it is left alone" in capsys.readouterr().out


def test_another_sglang_than_the_installed_one_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Facts(sglang="0.5.17", torch="2.11.0", gpu=False, installed={}))
    assert main(["setup", "--sglang", "0.5.18"]) == 2
    err = capsys.readouterr().err
    assert "SGLang 0.5.18 was asked for, SGLang 0.5.17 is installed here and set-up never" in err


def test_the_release_that_was_asked_for_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE, offers=True)
    assert main(["setup", "--sglang", "0.5.17", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "installing SGLang 0.5.17 without its CUDA packages" in out
    assert "0.5.17.txt" in out


def test_the_lock_of_a_file_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# requires-python: >=3.10\ntorch==2.99.0\nsglang==0.5.99\n")
    use(monkeypatch, BARE, offers=True)
    assert main(["setup", "--lock", str(lock), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "installing SGLang 0.5.99 without its CUDA packages" in out
    assert str(lock) in out
    assert "torch==2.99.0+cpu" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("torch==2.99.0\n", "not a lock"),
        ("hello world\n", "not a lock"),
        ("# requires-python: >=4\nsglang==1\n", "needs Python >=4"),
    ],
)
def test_a_file_that_is_no_lock_for_this_python_is_a_usage_error(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock.txt"
    if text is not None:
        lock.write_text(text)
    assert main(["setup", "--lock", str(lock), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert f"--lock {lock}: " in err
    assert words in err


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "clone" / "python" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "_version.py").write_text("__version__ = '0.5.18.dev7+gabc'\n")
    return tmp_path / "clone"


@pytest.mark.parametrize("inside", ["", "python"])
def test_a_checkout_gets_what_the_release_before_it_needs(
    inside: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE, offers=True)
    calls = pip_says(monkeypatch)
    assert main(["setup", "--sglang", str(checkout / inside), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert calls == []
    assert "installing what SGLang 0.5.17 without its CUDA packages needs; torch: " in out
    assert "grep -vE '^(sglang)=='" in out
    assert f"and the SGLang of {checkout / 'python'}, by a .pth file" in out


def test_a_checkout_is_added_after_what_it_needs(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, BARE, offers=True)
    calls = pip_says(monkeypatch, GOOD)
    monkeypatch.setattr(pip, "run_python", lambda _: GOOD)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert main(["setup", "--sglang", str(checkout)]) == 0
    assert len(calls) == 1
    (added,) = tmp_path.glob("*.pth")
    assert added.read_text() == f"{checkout / 'python'}\n"


def test_a_checkout_for_a_gpu_is_installed_as_sglang_says(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE)
    assert main(["setup", "--sglang", str(checkout), "--cuda", "--dry-run"]) == 0
    assert f"install --no-compile -e {checkout / 'python'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "installed", "words"),
    [
        ("0.5.2", None, "SGLang 0.5.2; the oldest supported is 0.5.13"),
        (None, None, "not a checkout of SGLang: there is no python/sglang/__init__.py in it"),
        ("0.5.18", "0.5.17", "is installed here and set-up never replaces one"),
    ],
)
def test_checkouts_that_are_refused(
    version: str | None,
    installed: str | None,
    words: str,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(monkeypatch, Facts(sglang=installed, torch=None, gpu=False, installed={}))
    monkeypatch.setattr(command, "installed", lambda: Installed("0.5.17", Path("/elsewhere")))
    package = checkout / "python" / "sglang"
    if version is None:
        (package / "__init__.py").unlink()
    else:
        (package / "_version.py").write_text(f"__version__ = '{version}'\n")
    assert main(["setup", "--sglang", str(checkout)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "terminal", "answer", "agreed"),
    [
        ([], False, "y", False),
        (["--yes"], False, "", True),
        ([], True, "y", True),
        ([], True, "", False),
    ],
)
def test_apt_get_is_called_only_with_leave(
    options: list[str],
    terminal: bool,
    answer: str,
    agreed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, Facts(sglang="0.5.17", torch="2.11.0", gpu=False, installed={}))
    asked: list[bool] = []

    def complete(_: object, agree: Callable[[str], bool], *, dry: bool) -> str:  # noqa: ARG001
        asked.append(agree("apt-get install x"))
        return ""

    monkeypatch.setattr(command, "complete_mooncake", complete)
    stdin = io.StringIO(answer + "\n")
    stdin.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["setup", "--no-verify", *options]) == 0
    assert asked == [agreed]


def test_no_word_of_a_mooncake_that_is_about_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE, offers=True)
    monkeypatch.setattr(command, "complete_mooncake", lambda *_, dry: f"it lacks {dry}")
    assert main(["setup", "--dry-run"]) == 0
    assert "lacks" not in capsys.readouterr().err
    pip_says(monkeypatch, GOOD)
    monkeypatch.setattr(pip, "run_python", lambda _: GOOD)
    assert main(["setup"]) == 0
    assert "warning: it lacks False" in capsys.readouterr().err


def test_torchvision_that_fails_for_want_of_cuda_is_cured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE, offers=True)
    pip_says(monkeypatch, GOOD)
    fails = Result(1, "RuntimeError: operator torchvision::nms does not exist", 1.0)
    monkeypatch.setattr(pip, "run_python", lambda args: fails if "-c" in args else GOOD)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert main(["setup"]) == 0
    assert sorted(it.name for it in tmp_path.iterdir()) == [
        "_pytest_pprank_torchvision.pth",
        "_pytest_pprank_torchvision.py",
    ]
    assert "_pytest_pprank_torchvision.pth lets it import without" in capsys.readouterr().out


def test_dry_run_prints_the_command_and_installs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE, offers=True)
    calls = pip_says(monkeypatch)
    assert main(["setup", "--dry-run"]) == 0
    assert calls == []
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("python -m pip install --no-compile --no-deps -r ")
    assert last.endswith("+cpu")


def test_a_failing_pip_is_quoted_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE, offers=True)
    pip_says(monkeypatch, Result(1, "WARNING: Location 'x' is ignored\nERROR: disk full\n", 1.0))
    assert main(["setup"]) == 1
    err = capsys.readouterr().err
    assert "ERROR: disk full" in err
    assert "Location" not in err
    assert "--dry-run" in err


def test_a_failing_wheel_index_is_left_out_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, BARE)
    monkeypatch.setattr(facts, "index_answers", lambda: True)
    monkeypatch.setattr(pip, "run_python", lambda _: GOOD)
    calls = pip_says(monkeypatch, Result(1, "ERROR: cut off", 1.0), GOOD)
    assert main(["setup"]) == 0
    assert ["--extra-index-url" in call for call in calls] == [True, False]


def test_a_cuda_torch_that_does_not_import_alone_gets_its_dependencies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE)
    imports = [Result(1, "libcudart.so.13: not found", 1.0), GOOD, GOOD]
    monkeypatch.setattr(pip, "run_python", lambda _: imports.pop(0))
    calls = pip_says(monkeypatch, GOOD, GOOD)
    assert main(["setup"]) == 0
    assert ["--no-deps" in call for call in calls] == [True, False]
    assert calls[1][-1].startswith("torch==")
    assert "CUDA" in capsys.readouterr().out


@pytest.mark.parametrize("sglang", [None, "0.5.17"])
def test_what_does_not_import_fails_the_command(
    sglang: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Facts(sglang=sglang, torch=None, gpu=False, installed={}), offers=True)
    pip_says(monkeypatch, GOOD)
    monkeypatch.setattr(pip, "run_python", lambda _: Result(1, "ImportError: no such thing", 1.0))
    assert main(["setup"]) == 1
    assert "ImportError: no such thing" in capsys.readouterr().err


def test_a_fresh_installation_is_verified_whatever_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, BARE, offers=True)
    pip_says(monkeypatch, GOOD)
    monkeypatch.setattr(pip, "run_python", lambda _: Result(1, "ImportError: x", 1.0))
    assert main(["setup", "--no-verify"]) == 1


@pytest.mark.parametrize("options", [[], ["--torch-only"], ["--cuda"], ["--dry-run"]])
def test_an_old_torch_is_a_usage_error(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Facts(sglang=None, torch="2.9.0", gpu=False, installed={"torch": "2.9.0"}))
    assert main(["setup", *options]) == 2
    assert "torch 2.9.0" in capsys.readouterr().err


def test_an_environment_without_pip_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BARE)
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    assert main(["setup"]) == 2
    assert "uv pip install pip" in capsys.readouterr().err


def test_it_runs_as_a_module_and_imports_neither_torch_nor_sglang() -> None:
    code = (
        "import sys; from pytest_pprank.__main__ import main\n"
        "try: main(['setup', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'sglang'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--torch-only" in done.stdout


class TestFacts:
    def test_no_gpu_where_the_user_hides_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert facts.has_gpu() is False

    @pytest.mark.parametrize(("listed", "there"), [("GPU 0: H200", True), ("no devices", False)])
    def test_nvidia_smi_is_believed_when_it_lists_a_gpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, there: bool
    ) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{listed}'\n", encoding="utf-8")
        tool.chmod(0o755)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
        assert facts.has_gpu() is there

    def test_an_index_nobody_serves_is_no_answer(self) -> None:
        assert facts.index_answers("http://127.0.0.1:9", seconds=1.0) is False
