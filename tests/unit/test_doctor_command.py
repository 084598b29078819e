"""``doctor``: deadlines and errors of checks, what it prints, and what it says can run."""

from __future__ import annotations

import json
import time

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.devices import NO_GPU
from pytest_pprank.doctor import child, command, table, verdict
from pytest_pprank.doctor.child import ChildFailed, ask
from pytest_pprank.doctor.examine import examine
from pytest_pprank.doctor.result import (
    EVERYTHING,
    WITH_SGLANG,
    Check,
    Result,
    State,
    Use,
    broken,
    limited,
    ok,
)
from pytest_pprank.errors import UsageError


def one(check: Check) -> Result:
    ((_, result),) = examine([check])
    return result


def raises(error: BaseException) -> Check:
    def look() -> Result:
        raise error

    return Check("one", look, EVERYTHING)


def hangs() -> Result:
    time.sleep(30)
    return ok("late")


class TestExamine:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("first\nsecond"), "ValueError: first"),
            (RuntimeError(), "RuntimeError"),
            (UsageError("our own words"), "our own words"),
            (SystemExit(3), "SystemExit: 3"),
        ],
        ids=lambda it: type(it).__name__,
    )
    def test_a_check_that_raises_is_broken(self, error: BaseException, text: str) -> None:
        assert one(raises(error)) == Result(State.BROKEN, text, stops=EVERYTHING)

    def test_a_check_that_hangs_is_broken_at_its_deadline(self) -> None:
        start = time.monotonic()
        result = one(Check("slow", hangs, WITH_SGLANG, seconds=0.2))
        assert result == Result(State.BROKEN, "no answer within 0.2 s", stops=WITH_SGLANG)
        assert time.monotonic() - start < 10

    def test_checks_run_at_the_same_time(self) -> None:
        start = time.monotonic()
        checks = [Check(str(number), hangs, seconds=0.4) for number in range(20)]
        assert [check.name for check, _ in examine(checks)] == [str(it) for it in range(20)]
        assert time.monotonic() - start < 6

    def test_a_limited_check_stops_what_it_says_itself(self) -> None:
        assert one(Check("a", lambda: limited("x"), EVERYTHING)).stops == ()
        result = limited("x", stops=(Use.SIM,))
        assert one(Check("a", lambda: result, EVERYTHING)).stops == (Use.SIM,)


class TestChild:
    def test_the_last_line_is_the_answer(self) -> None:
        assert ask("print('noise'); print(6 * 7)") == "42"

    def test_gpus_are_hidden_from_all_but_cuda(self) -> None:
        code = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))"
        assert ask(code, "sim") == NO_GPU

    def test_an_error_is_told_by_its_last_line(self) -> None:
        with pytest.raises(ChildFailed, match=r"^ValueError: no$"):
            ask("raise ValueError('no')")

    def test_a_silent_death_is_told_by_its_exit_code(self) -> None:
        with pytest.raises(ChildFailed, match=r"^exit code 3$"):
            ask("import os; os._exit(3)")

    def test_one_that_hangs_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(child, "SECONDS", 0.5)
        with pytest.raises(ChildFailed, match=r"^no answer within 0\.5 s$"):
            ask("import time; time.sleep(30)")


class TestVerdict:
    @pytest.fixture(autouse=True)
    def _version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verdict, "sglang_version", lambda: "9.9")

    @pytest.mark.parametrize(
        ("stops", "words"),
        [
            ((), "ranked torch tests on cpu, sim and cuda; SGLang 9.9 pipeline parallel; "
             "prefill/decode"),
            ((Use.CUDA, Use.DISAGG),
             "ranked torch tests on cpu and sim; SGLang 9.9 pipeline parallel"),
            ((Use.SIM, Use.CUDA, *WITH_SGLANG), "ranked torch tests on cpu"),
            (EVERYTHING, "nothing"),
        ],
    )  # fmt: skip
    def test_in_words(self, stops: tuple[Use, ...], words: str) -> None:
        runs = verdict.usable([limited("x", stops=(each,)) for each in stops])
        assert verdict.in_words(runs) == f"can run: {words}"
        assert verdict.anything(runs) is (words != "nothing")


CHECKS = (
    Check("good", lambda: ok("fine"), EVERYTHING),
    Check("part", lambda: limited("no GPU", "buy one", stops=(Use.CUDA, Use.SIM, *WITH_SGLANG))),
)
NO_LOOPBACK = Check("loopback", lambda: broken("refused", "ip link set lo up"), EVERYTHING)


class TestCommand:
    def test_lines(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, "CHECKS", CHECKS)
        assert main(["doctor"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "good      ok       fine",
            "part      limited  no GPU",
            "          mend:    buy one",
            "can run: ranked torch tests on cpu",
        ]

    def test_json_has_the_same_facts(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, "CHECKS", CHECKS)
        assert main(["doctor", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["checks"][0] == {
            "name": "good", "state": "ok", "text": "fine", "cure": "", "stops": [],
        }  # fmt: skip
        assert said["checks"][1]["stops"] == ["cuda", "sim", "sglang", "disagg"]
        assert said["can_run"] == {
            "cpu": True, "sim": False, "cuda": False, "sglang": False, "disagg": False,
        }  # fmt: skip
        assert said["summary"] == "can run: ranked torch tests on cpu"

    def test_exit_code_where_nothing_can_run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, "CHECKS", (*CHECKS, NO_LOOPBACK))
        assert main(["doctor"]) == 1
        assert capsys.readouterr().out.endswith("ip link set lo up\ncan run: nothing\n")

    def test_ctrl_c_is_no_traceback(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted() -> dict[str, Result]:
            raise KeyboardInterrupt

        monkeypatch.setattr(command, "_print_lines", interrupted)
        assert main(["doctor"]) == 130
        assert capsys.readouterr().err == "doctor: interrupted\n"


def test_names_fit_in_their_column_and_differ() -> None:
    names = [check.name for check in table.CHECKS]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 10


def test_neither_torch_nor_sglang_is_imported() -> None:
    shown = "print({'torch', 'sglang'} & {*sys.modules})"
    assert ask(f"import sys; import pytest_pprank.doctor.table; {shown}") == "set()"
