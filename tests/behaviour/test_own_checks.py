"""Checks and faults that other plugins register: what they find and do, and how they fail."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

APP = """
    listeners = []
    values = []


    def say(word):
        for listener in listeners:
            listener(word)


    def number():
        return 0
"""
WATCHERS = """
    from functools import partial

    import app
    from pytest_pprank import Finding, Perturbation, Sanitizer


    class Loud(Sanitizer):
        def begin(self):
            said = partial(self.watch.guard, self.heard)
            app.listeners.append(said)
            self.watch.at_end(lambda: app.listeners.remove(said))

        def heard(self, word):
            if word.isupper():
                self.watch.report(f"{word} was shouted", self.watch.stack(), "say it softly")


    class Together(Sanitizer):
        def begin(self):
            app.values.clear()

        def evidence(self):
            return app.values or None


    def compare(by_rank):
        if by_rank[0] != by_rank[1]:
            yield Finding("together", f"rank 0 has {by_rank[0]}, rank 1 has {by_rank[1]}")


    def broken_compare(by_rank):
        return by_rank["nobody"]


    def fail(self, *_):
        raise ValueError("I am no good")


    class InBegin(Sanitizer):
        begin = fail


    class InEnd(Sanitizer):
        end = fail


    class InEvidence(Sanitizer):
        evidence = fail


    class InUndoing(Sanitizer):
        def begin(self):
            self.watch.at_end(lambda: fail(self))


    class NoJson(Sanitizer):
        def evidence(self):
            return {1, 2}


    class Brings(Sanitizer):
        def evidence(self):
            return 1


    class NoSanitizer:
        def __init__(self, watch):
            pass


    class OddNumbers(Perturbation):
        def begin(self):
            before = app.number
            app.number = self.number
            self.disturbance.at_end(lambda: setattr(app, "number", before))

        def number(self):
            self.disturbance.strike()
            return self.disturbance.shared.draw("number")


    class BadFault(Perturbation):
        begin = fail
"""
CONFTEST = """
    from pytest_pprank import CheckRow, FaultRow

    BROKEN = ["InBegin", "InEnd", "InEvidence", "InUndoing", "NoJson", "NoSanitizer", "Missing"]


    def row(name, place, **more):
        return CheckRow(name, "of a test", f"watchers:{place}", sglang=False, **more)


    def pytest_pprank_register_checks():
        yield_of = [row(name.lower(), name, opt_in=True) for name in BROKEN]
        return [
            row("loud", "Loud"),
            row("together", "Together", compare="watchers:compare"),
            row("incompare", "Brings", compare="watchers:broken_compare", opt_in=True),
            *yield_of,
        ]


    def pytest_pprank_register_faults(config):
        assert config.rootpath
        return [
            FaultRow("odd_numbers", "of a test", "watchers:OddNumbers", sglang=False),
            FaultRow("bad_fault", "of a test", "watchers:BadFault", sglang=False, opt_in=True),
        ]
"""
TESTS = """
    import app
    import pytest

    BROKEN = ["inbegin", "inend", "inevidence", "inundoing", "nojson", "nosanitizer", "missing"]


    def test_softly(pprank):
        app.say("hello")


    def test_shouted(pprank):
        app.say("HELLO")


    @pytest.mark.pprank(sanitize="-loud")
    def test_deaf(pprank):
        app.say("HELLO")


    @pytest.mark.pprank(sanitize="none")
    def test_unwatched(pprank):
        app.say("HELLO")


    def test_allowed(pprank):
        app.say("ALLOWED")


    def test_values(pprank):
        app.values.append(pprank.rank)


    def test_same_values(pprank):
        app.values.append(7)


    @pytest.mark.parametrize(
        "which",
        [
            pytest.param(name, marks=pytest.mark.pprank(sanitize=["+" + name], perturb="none"))
            for name in [*BROKEN, "incompare"]
        ],
    )
    def test_broken(pprank, which):
        pass


    @pytest.mark.pprank(perturb="1:+bad_fault")
    def test_bad_fault(pprank):
        pass


    @pytest.mark.pprank(perturb="5:odd_numbers")
    def test_odd(pprank):
        assert [app.number(), app.number()] == [0, 0]


    @pytest.mark.pprank(perturb="none")
    def test_number_after_it(pprank):
        assert app.number() == 0


    def test_by_option(pprank):
        assert app.number() == 0
"""
ALLOW = "[{sanitizer: loud, match: ALLOWED was shouted, reason: to see that it is}]\n"


def write(runner: Runner) -> None:
    runner.write(app=APP, watchers=WATCHERS, conftest=CONFTEST, test_it=TESTS)
    (runner.folder / "allow.yaml").write_text(ALLOW)


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    write(module_runner)
    arguments = ["--pprank-sanitize-allow", "allow.yaml"]
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu", *arguments)


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_softly", "PASSED"),
        ("test_shouted", "FAILED"),
        ("test_deaf", "PASSED"),
        ("test_allowed", "PASSED"),
        ("test_values", "FAILED"),
        ("test_same_values", "PASSED"),
        ("test_odd", "FAILED"),
        ("test_number_after_it", "PASSED"),
        ("test_by_option", "PASSED"),
    ],
)
def test_outcome(run: Run, test: str, outcome: str) -> None:
    assert run.outcome(f"{test}[pp2]") == outcome


def test_finding_has_name_place_and_cure(run: Run) -> None:
    found = run.findings("test_shouted[pp2]")
    assert "loud: HELLO was shouted\n  on ranks 0,1\n  at app.py:8 in say\n" in found
    assert re.search(r"\n     test_it.py:\d+ in test_shouted\n", found)
    assert "  cure: say it softly" in found


def test_evidence_is_compared(run: Run) -> None:
    assert "together: rank 0 has [0], rank 1 has [1]" in run.findings("test_values[pp2]")


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("inbegin", "the sanitizer itself failed (ValueError: I am no good)"),
        ("inend", "the sanitizer itself failed (ValueError: I am no good)"),
        ("inevidence", "the sanitizer itself failed (ValueError: I am no good)"),
        ("inundoing", "the sanitizer itself failed (ValueError: I am no good)"),
        ("nojson", "the sanitizer itself failed (TypeError: Object of type set is not JSON"),
        (
            "nosanitizer",
            "watchers:NoSanitizer is not a class with the base pytest_pprank.Sanitizer",
        ),
        ("missing", "module 'watchers' has no attribute 'Missing'"),
        ("incompare", "the sanitizer itself failed (KeyError: 'nobody')"),
    ],
)
def test_own_failure_is_told_in_its_name(run: Run, which: str, words: str) -> None:
    test = f"test_broken[{which}-pp2]"
    assert run.outcome(test) == "FAILED"
    failure = run.failure(test)
    assert words in failure
    assert f"sanitizer: {which}: the sanitizer itself failed" in failure
    assert "cure: " in failure


def test_fault_that_fails_is_told(run: Run) -> None:
    failure = run.failure("test_bad_fault[pp2]")
    assert "bad_fault: the perturbation itself failed (ValueError: I am no good)" in failure
    assert "cure: leave it out for now: --pprank-perturb SEED:-bad_fault" in failure


def test_fault_is_repeated_by_the_printed_command(run: Run, module_runner: Runner) -> None:
    failure = run.failure("test_odd[pp2]")
    assert "perturbed: seed 5 (odd_numbers)" in failure
    assert "  ranks 0,1: odd_numbers 2 times" in failure
    (command,) = re.findall(r"again: .* 'test_it.py::test_odd\[pp2\]' (.*)", failure)
    assert " --pprank-perturb 5:odd_numbers " in command
    again = module_runner.run(*command.split(), "test_it.py::test_odd[pp2]").failure(
        "test_odd[pp2]"
    )
    drawn = re.findall(r"0\.\d{6,}", failure)
    assert drawn
    assert re.findall(r"0\.\d{6,}", again) == drawn


def test_seed_alone_draws_it_too(module_runner: Runner, run: Run) -> None:  # noqa: ARG001  (its folder)
    arguments = ["--pp-size", "2", "--pprank-device", "cpu", "-k", "by_option"]
    seeded = module_runner.run(*arguments, "--pprank-perturb", "3")
    failure = seeded.failure("test_by_option[pp2]")
    assert "perturbed: seed 3 (messages, late_sends, odd_numbers)" in failure
    assert "--pprank-perturb 3:messages,late_sends,odd_numbers\n" in failure


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pprank-sanitize=lowd"], "there is no sanitizer 'lowd' (did you mean 'loud'?)"),
        (["--pprank-perturb=1:odd"], "there is no perturbation 'odd'"),
    ],
)
def test_unknown_name(module_runner: Runner, run: Run, arguments: list[str], words: str) -> None:  # noqa: ARG001  (its folder)
    wrong = module_runner.run("--pp-size", "2", *arguments)
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    assert words in wrong.out
    assert "loud" in wrong.out or "odd_numbers" in wrong.out


def test_by_name_and_from_a_plugin(runner: Runner) -> None:
    """-p PLUGIN reaches the ranks; checks and faults that were not named are left out."""
    write(runner)
    (runner.folder / "conftest.py").rename(runner.folder / "rows.py")
    env = {"PYTHONPATH": f"{runner.folder}:{':'.join(filter(None, sys.path))}"}
    only = ["-k", "shouted or values", "--pprank-sanitize", "loud"]
    run = runner.run("-p", "rows", "--pp-size", "2", "--pprank-device", "cpu", *only, env=env)
    assert run.outcome("test_shouted[pp2]") == "FAILED"
    assert run.outcome("test_values[pp2]") == "PASSED"


def test_name_that_ranks_do_not_know(runner: Runner) -> None:
    """A plugin object never reaches a rank: its test fails with this message, the next one runs."""
    write(runner)
    (runner.folder / "conftest.py").rename(runner.folder / "rows.py")
    runner.write(
        start="""
        import sys, pytest, rows
        sys.exit(pytest.main(sys.argv[1:], plugins=[type("P", (), {
            "pytest_pprank_register_checks": staticmethod(rows.pytest_pprank_register_checks)})()]))
        """
    )
    command = [sys.executable, "start.py", "-v", "-p", "no:cacheprovider", "--pp-size", "2"]
    command += ["--pprank-device", "cpu", "--pprank-sanitize", "loud", "-k", "softly or unwatched"]
    env = runner.environment()
    done = subprocess.run(
        command, cwd=runner.folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert "there is no sanitizer 'loud' in this process" in done.stdout
    assert "one of your own is to be registered on the ranks, too" in done.stdout
    assert "test_softly[pp2] FAILED" in done.stdout
    assert "test_unwatched[pp2] PASSED" in done.stdout


def test_hook_that_comes_too_late(runner: Runner) -> None:
    write(runner)
    (runner.folder / "a" / "below").mkdir(parents=True)
    for name in ("conftest", "test_it"):
        file = runner.folder / f"{name}.py"
        file.rename(runner.folder / "a" / "below" / f"{name}.py")
    wrong = runner.run("--pp-size", "2")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    assert "pytest_pprank_register_checks of " in wrong.out
    assert "conftest.py comes too late" in wrong.out


def test_duplicate_name(runner: Runner) -> None:
    runner.write(app=APP, watchers=WATCHERS, test_it=TESTS)
    runner.write(conftest=CONFTEST.replace('row("loud"', 'row("p2p"'))
    wrong = runner.run("--pp-size", "2")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    assert "pytest_pprank_register_checks: sanitizer 'p2p': the name is taken" in wrong.out
    assert "Traceback" not in wrong.out
