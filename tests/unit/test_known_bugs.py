"""Known bugs of SGLang: the file, what tests expect of them, and judging a run by them."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank import suite
from pytest_pprank.__main__ import main
from pytest_pprank.errors import UsageError
from pytest_pprank.known import bugs as known_bugs
from pytest_pprank.known import command, marks
from pytest_pprank.known.judge import read_junit
from pytest_pprank.planning import make_plans, plan_of

ENTRY = """
- id: stage-keeps-request
  versions: ">=0.5.13,<0.5.20"
  seen: [0.5.13]
  symptom: a stage keeps a request
  where: ["a.py: f"]
  see: [test_a.py::test_x]
  raises: AssertionError
  says: not balanced
  link: ''
"""


def read(tmp_path: Path, text: str) -> tuple[known_bugs.KnownBug, ...]:
    file = tmp_path / "bugs.yaml"
    file.write_text(text)
    return known_bugs.read(file)


@pytest.fixture
def bugs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the known bugs and the release of SGLang by these."""

    def have(text: str, version: str | None) -> tuple[known_bugs.KnownBug, ...]:
        found = read(tmp_path, text)
        monkeypatch.setattr(known_bugs, "known_bugs", lambda: found)
        monkeypatch.setattr(command, "known_bugs", lambda: found)
        monkeypatch.setattr(marks, "sglang_version", lambda: version)
        monkeypatch.setattr(command, "sglang_version", lambda: version)
        return found

    return have


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("0.5.12", False),
        ("0.5.13", True),
        ("0.5.13.post1", True),
        ("0.5.16+cpu", True),
        ("0.5.19.dev7", True),
        ("0.5.20", False),
        (None, False),
    ],
)
def test_releases(tmp_path: Path, version: str | None, affected: bool) -> None:
    (bug,) = read(tmp_path, ENTRY)
    assert bug.affects(version) is affected
    assert bug.releases == ">=0.5.13,<0.5.20"


def test_devices(tmp_path: Path) -> None:
    (bug,) = read(tmp_path, ENTRY + "  devices: [sim]\n")
    assert [bug.shows_on(device, 2) for device in ("sim", "cpu", "cuda")] == [True, False, False]


def test_stages(tmp_path: Path) -> None:
    (bug,) = read(tmp_path, ENTRY + "  stages: 2\n")
    assert [bug.shows_on("cpu", stages) for stages in (1, 2, 4)] == [False, True, True]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("symptom:", "symtom:", "no key 'symtom' (did you mean 'symptom'?); 'symptom' is missing"),
        ("a stage keeps a request", "''", "'symptom' is empty"),
        (">=0.5.13,<0.5.20", "since 0.5.13", "'versions' 'since 0.5.13' is no version specifier"),
        ("seen: [0.5.13]", "seen: [0.5.13, 0.5.20]", "seen in 0.5.20, which 'versions' leaves out"),
        ("seen: [0.5.13]", "seen: 0.5.13", "'seen' must be a list of texts"),
        ("stage-keeps-request", "Stage_keeps", "'id' 'Stage_keeps' must be words in lower case"),
        ("AssertionError", "sanitizer stream", "neither the name of an exception nor one of sanit"),
        ("link: ''", "link:", "'link' must be a text, not None"),
        ("link: ''", "link: ''\n  strict: false", "'strict: false' needs a 'reason'"),
        ("link: ''", "link: ''\n  reason: a race", "'reason' is for 'strict: false'"),
        ("link: ''", "link: ''\n  red: yes please", "'red' must be true or false"),
        ("link: ''", "link: ''\n  devices: [tpu]", "no device 'tpu'; allowed: cpu, sim, cuda"),
        (
            "link: ''",
            "link: ''\n  red: true\n  strict: false\n  reason: a race",
            "'red: true' is strict",
        ),
        ("link: ''", "link: ''\n  stages: two", "'stages' must be a whole number from 1 up"),
        ("- id", "? - id", "bugs.yaml"),
        ("- id: stage-keeps-request", "id: x\n", "bugs.yaml"),
    ],
)
def test_bad_entries(tmp_path: Path, before: str, after: str, words: str) -> None:
    assert before in ENTRY
    with pytest.raises(UsageError, match=re.escape(words)):
        read(tmp_path, ENTRY.replace(before, after, 1))


def test_two_entries_of_one_id(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two entries have the id stage-keeps-request"):
        read(tmp_path, ENTRY + ENTRY)


def test_a_race_with_a_reason(tmp_path: Path) -> None:
    (bug,) = read(tmp_path, ENTRY + "  strict: false\n  reason: >-\n    a race\n    of threads\n")
    assert (bug.strict, bug.reason) == (False, "a race of threads")


def _marked(module: Any) -> Iterator[tuple[str, str]]:
    """Yield the tests of a module that name known bugs, with the ids."""
    file = f"{module.__name__.rpartition('.')[2]}.py"
    owners = [(file, module)]
    owners += [(f"{file}::{n}", c) for n, c in vars(module).items() if n.startswith("Test")]
    for place, owner in owners:
        for name, test in vars(owner).items():
            for mark in _marks(test) if name.startswith("test_") else ():
                if "known_bug" in mark.kwargs:
                    named = mark.kwargs["known_bug"]
                    for each in (named,) if isinstance(named, str) else named:
                        yield f"{place}::{name}", each


def _marks(test: Any) -> Iterator[pytest.Mark]:
    """Yield the marks of a test, and those of its parameters."""
    for mark in getattr(test, "pytestmark", ()):
        yield mark
        for values in mark.args[1] if mark.name == "parametrize" else ():
            for each in getattr(values, "marks", ()):
                yield getattr(each, "mark", each)


def test_suite_and_file_name_the_same_tests() -> None:
    modules = [
        import_module(f"{suite.__name__}.{m.name}") for m in pkgutil.iter_modules(suite.__path__)
    ]
    marked = {pair for module in modules for pair in _marked(module)}
    listed = {(test, bug.id) for bug in known_bugs.known_bugs() for test in bug.see}
    assert marked == listed
    assert len(listed) >= 9


MARKED = """
import pytest

@pytest.mark.pprank(pp=2, known_bug="stage-keeps-request", perturb=7)
def test_x(): pass
"""


def planned(pytester: pytest.Pytester, source: str = MARKED) -> Any:
    items, _ = pytester.inline_genitems(pytester.makepyfile(source), "--pprank-device=cpu")
    make_plans(items[0].config, items)
    return items[0]


def test_a_release_that_has_the_bug(pytester: pytest.Pytester, bugs: Any) -> None:
    found = bugs(ENTRY, "0.5.19")
    item = planned(pytester)
    mark = item.get_closest_marker("xfail")
    assert mark.kwargs["strict"] is True
    assert mark.kwargs["reason"] == "known bug stage-keeps-request: a stage keeps a request"
    plan = plan_of(item)
    assert plan is not None
    assert (plan.known_bugs, plan.perturb) == (found, None)


@pytest.mark.parametrize(
    ("extra", "version"),
    [
        ("", "0.5.20"),
        ("", None),
        ("  devices: [sim]\n", "0.5.19"),
        ("  stages: 3\n", "0.5.19"),
    ],
)
def test_a_release_device_or_size_without_it(
    pytester: pytest.Pytester, bugs: Any, extra: str, version: str | None
) -> None:
    bugs(ENTRY + extra, version)
    item = planned(pytester)
    assert item.get_closest_marker("xfail") is None
    plan = plan_of(item)
    assert plan is not None
    assert plan.known_bugs == ()
    assert plan.perturb is not None


def test_red_ones_are_not_expected(pytester: pytest.Pytester, bugs: Any) -> None:
    found = bugs(ENTRY + "  red: true\n", "0.5.19")
    item = planned(pytester)
    assert item.get_closest_marker("xfail") is None
    plan = plan_of(item)
    assert plan is not None
    assert plan.known_bugs == found
    assert plan.perturb is not None


def test_of_several_bugs_the_one_that_applies_is_expected(
    pytester: pytest.Pytester, bugs: Any
) -> None:
    bugs(ENTRY + ENTRY.replace("stage-keeps-request", "other").replace("<0.5.20", "<0.6"), "0.5.20")
    source = MARKED.replace('"stage-keeps-request"', '("stage-keeps-request", "other")')
    mark = planned(pytester, source).get_closest_marker("xfail")
    assert mark.kwargs["reason"] == "known bug other: a stage keeps a request"


@pytest.mark.parametrize(
    "ids", ['("stage-keeps-request", "other")', '("other", "stage-keeps-request")']
)
def test_two_bugs_that_apply_are_both_expected(
    pytester: pytest.Pytester, bugs: Any, ids: str
) -> None:
    """In either order: a sanitizer's finding is no exception, and must not hide the other bug's."""
    other = ENTRY.replace("stage-keeps-request", "other").replace("AssertionError", "sanitizer p2p")
    bugs(ENTRY + other, "0.5.19")
    item = planned(pytester, MARKED.replace('"stage-keeps-request"', ids))
    mark = item.get_closest_marker("xfail")
    assert isinstance(AssertionError("not balanced"), mark.kwargs["raises"])
    assert mark.kwargs["reason"].count("known bug ") == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("'stage-kept-request'", "no known bug 'stage-kept-request' (did you mean 'stage-keeps"),
        ("7", "an id, or a tuple of ids"),
        ("['x']", "an id, or a tuple of ids"),
    ],
)
def test_bad_marks(pytester: pytest.Pytester, bugs: Any, value: str, words: str) -> None:
    bugs(ENTRY, "0.5.19")
    with pytest.raises(UsageError, match=re.escape(words)):
        planned(pytester, MARKED.replace('"stage-keeps-request"', value))


class StagesDiffer(AssertionError):
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AssertionError("KV is not balanced"), True),
        (StagesDiffer("not balanced"), True),
        (AssertionError("another one"), False),
        (ValueError("not balanced"), False),
    ],
)
def test_which_exception_is_expected(tmp_path: Path, error: Exception, expected: bool) -> None:
    (bug,) = read(tmp_path, ENTRY)
    assert isinstance(error, marks.expected_by(bug)) is expected


def test_of_a_sanitizer_no_exception_is_expected(tmp_path: Path) -> None:
    (bug,) = read(tmp_path, ENTRY.replace("AssertionError", "sanitizer streams"))
    assert bug.sanitizer == "streams"
    assert not isinstance(AssertionError("not balanced"), marks.expected_by(bug))


CASE = '<testcase classname="x.suite.{}" name="{}">{}</testcase>'
CASES = (
    ("test_a", "test_x[pp2]", '<error message="KV">not balanced</error>'),
    ("test_a", "test_x[pp4]", '<failure message="not balanced"/>'),
    ("test_a.TestB", "test_x[pp2]", '<skipped type="pytest.xfail"/>'),
    ("test_b", "test_y", ""),
)
JUNIT = "\n".join(["<testsuite>", *(CASE.format(*case) for case in CASES), "</testsuite>"])
RED = ENTRY + "  red: true\n"


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("", "", ""),
        (
            '<failure message="not balanced"/>',
            "",
            "test_a.py::test_x[pp4]: did not fail: known bug stage-keeps-request did not show",
        ),
        (
            '<failure message="not balanced"/>',
            '<failure message="no seam"/>',
            "test_a.py::test_x[pp4]: failed, but not by known bug stage-keeps-request, which says "
            "'not balanced': no seam",
        ),
        (
            'name="test_y">',
            'name="test_y"><failure message="boom">x</failure>',
            "test_b.py::test_y: failed, and not for a known bug: boom",
        ),
        (
            '<skipped type="pytest.xfail"/>',
            '<failure message="[XPASS(strict)] known bug other"/>',
            "test_a.py::TestB::test_x[pp2]: failed, and not for a known bug: [XPASS(strict)] known",
        ),
        (
            "test_a",
            "test_c",
            "test_a.py::test_x: was not run, and shows known bug stage-keeps-request",
        ),
    ],
)
def test_a_run_is_judged(
    tmp_path: Path,
    bugs: Any,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
    problem: str,
) -> None:
    bugs(RED, "0.5.19")
    file = tmp_path / "junit.xml"
    file.write_text(JUNIT.replace(before, after) if before else JUNIT)
    assert main(["known-bugs", "--judge", str(file)]) == (1 if problem else 0)
    out = capsys.readouterr().out
    assert (problem or "as it should be") in out


def test_another_release_must_be_green(
    tmp_path: Path, bugs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bugs(RED, "0.5.19")
    file = tmp_path / "junit.xml"
    file.write_text(JUNIT)
    assert main(["known-bugs", "--sglang", "0.5.20", "--judge", str(file)]) == 1
    assert "test_x[pp2]: failed, and not for a known bug: KV" in capsys.readouterr().out


def test_a_run_of_nothing(tmp_path: Path, bugs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bugs(ENTRY, "0.5.19")
    file = tmp_path / "junit.xml"
    file.write_text("<testsuites><testsuite/></testsuites>")
    assert main(["known-bugs", "--judge", str(file)]) == 1
    assert "no test was run" in capsys.readouterr().out


def test_a_teardown_that_fails_after_a_failure(tmp_path: Path) -> None:
    """pytest writes such a test twice."""
    file = tmp_path / "junit.xml"
    case = '<testcase classname="test_a" name="test_x">'
    file.write_text(
        f'<t>{case}<failure message="one"/></testcase>{case}<error message="two"/></testcase></t>'
    )
    (only,) = read_junit(file)
    assert only.failed
    assert only.failure.split() == ["two", "one"]


@pytest.mark.parametrize(
    ("arguments", "version", "words"),
    [
        (["--judge", "none.xml"], "0.5.19", "none.xml"),
        (["--judge", "none.xml"], None, "name the release of that run by --sglang VERSION"),
        (["--sglang", "newest"], "0.5.19", "--sglang newest: not a version, such as 0.5.21"),
    ],
)
def test_usage_errors(
    bugs: Any,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    version: str | None,
    words: str,
) -> None:
    bugs(ENTRY, version)
    assert main(["known-bugs", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_list(bugs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bugs(ENTRY + RED.replace("stage-keeps-request", "red-one").replace("<0.5.20", "<0.6"), "0.5.20")
    assert main(["known-bugs"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("SGLang 0.5.20 has 1 of 2 known bugs\n\nred-one\n")
    before, _, after = out.partition("Not in SGLang 0.5.20:")
    assert "stage-keeps-request" not in before
    assert "stage-keeps-request\n  versions  >=0.5.13,<0.5.20 (seen in 0.5.13)" in after
    assert "pytest --pyargs pytest_pprank.suite --pp-size 2 -k test_x --runxfail" in after
    assert "link      none known" in after


def test_the_list_as_json(bugs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bugs(ENTRY, None)
    assert main(["known-bugs", "--json", "--sglang", "0.5.13"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["id"], entry["versions"]) == ("stage-keeps-request", ">=0.5.13,<0.5.20")
    assert entry["affects"] is True
    assert entry["see"] == ["test_a.py::test_x"]
