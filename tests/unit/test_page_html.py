"""The page as text: every text of a test is escaped, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_scene import ABOUT, RUN, Rank, part, timeline

from pytest_pprank.oplog.read.wait_graph import explain_waits
from pytest_pprank.report.page.build import build, render
from pytest_pprank.report.page.folder import INDEX, MARK, PARTS, TRACE
from pytest_pprank.report.page.parts import (
    RunPart,
    TestPart,
    anchor_of,
    packed,
    read_runs,
    read_tests,
    unpacked,
    write_run,
    write_test,
)
from pytest_pprank.report.page.plain import plain
from pytest_pprank.report.page.waits import graph_of
from pytest_pprank.trace.file import LOG

EVIL = "</script></pre><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def tags(page: str) -> _Tags:
    found = _Tags()
    found.feed(page)
    return found


def evil_test(tmp_path: Path) -> TestPart:
    first, second = Rank(tmp_path, 0), Rank(tmp_path, 1)
    first.trace.event(LOG, EVIL, {EVIL: [EVIL]})
    first.recv(1)
    second.recv(0)
    waits = explain_waits({0: first.ledger(), 1: second.ledger()}, {})
    return part(
        f"test_it.py::test_it[{EVIL}]",
        of=timeline(first, second),
        topology=EVIL,
        verdict=EVIL,
        failure=EVIL,
        summary=EVIL,
        sections=[(EVIL, EVIL)],
        again=EVIL,
        waits=graph_of(waits, {0: EVIL}),
        started_group=EVIL,
        replaced=EVIL,
    )


def test_every_text_is_escaped(tmp_path: Path) -> None:
    run = RunPart(EVIL, EVIL, [EVIL], [EVIL], [EVIL])
    found = tags(render([evil_test(tmp_path)], [run], ABOUT))
    assert [attrs for tag, attrs in found.found if tag == "img"] == []
    shown = "".join(found.text)
    assert shown.count(EVIL) >= 15
    assert not any(name.startswith("on") for _, attrs in found.found for name in attrs)


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = render([evil_test(tmp_path)], [RUN], ABOUT)
    found = tags(page)
    links = {
        value
        for _, attrs in found.found
        for name, value in attrs.items()
        if name in ("src", "href", "action", "data")
    }
    assert {link for link in links if link and not link.startswith(("#", "data:,"))} == {TRACE}
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for t, a in found.found if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_the_page_says_what_the_run_was() -> None:
    tests = [part(), part("test_it.py::green", outcome="passed", verdict="", topology="pp=4")]
    page = render(tests, [RUN], ABOUT)
    text = re.sub(r"\s+", " ", "".join(tags(page).text))
    assert MARK in page[:2000]
    for words in ("2 ranked tests", "1 failed, 1 passed", "1 worker group", "pytest-pprank 0."):
        assert words in text
    assert "pp=2 device=cpu 1 failed" in text
    assert "pp=4 1 passed" in text


def test_a_run_without_ranked_tests_has_a_page() -> None:
    assert "No ranked test has run." in render([], [], ABOUT)


def test_parts_are_read_back(tmp_path: Path) -> None:
    made = evil_test(tmp_path)
    write_test(tmp_path, "main-000001", made)
    write_run(tmp_path, "main", RUN)
    assert list(read_tests(tmp_path)) == [made]
    assert read_runs(tmp_path) == [RUN]


def test_a_timeline_is_read_back(tmp_path: Path) -> None:
    rank = Rank(tmp_path, 0, world=1)
    rank.complete(rank.meet())
    rank.trace.event(LOG, "said", {"text": "\ud800"})
    made = timeline(rank)
    again = unpacked(packed(made))
    assert (again.lanes, again.events, again.links) == (made.lanes, made.events, made.links)


def test_parts_of_several_processes_become_one_page(tmp_path: Path) -> None:
    parts = tmp_path / PARTS
    parts.mkdir()
    write_test(parts, "gw1-000001", part("test_it.py::second", started=2.0))
    write_test(parts, "gw0-000001", part("test_it.py::first", started=1.0))
    write_run(parts, "gw0", RunPart("gw0", "2 worker groups"))
    build(tmp_path, parts, ABOUT)
    page = (tmp_path / INDEX).read_text(encoding="utf-8")
    assert page.index("::first<") < page.index("::second<")
    assert "groups of gw0" in page
    assert (tmp_path / TRACE).exists()


def test_a_part_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    write_test(tmp_path, "gw0-000001", part())
    (tmp_path / "gw1-000001.test.partial").write_text('{"nodeid": "cut')
    (tmp_path / "gw1-000001.timeline").write_bytes(b"cut")
    assert len(list(read_tests(tmp_path))) == 1


@pytest.mark.parametrize(
    "nodeid",
    ["a.py::test[x y]", "a.py::test[x-y]", "b.py::test[x y]", "é.py::tést", "x::" + "y" * 999],
)
def test_anchors_are_different_and_plain(nodeid: str) -> None:
    anchor = anchor_of(nodeid)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,110}", anchor)
    assert anchor != anchor_of(nodeid + "!")
    assert anchor != anchor_of(nodeid, attempt=2)
    assert anchor == anchor_of(nodeid)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07", "red link"),
        ("\ud800\0\x07", "\ufffd\ufffd\ufffd"),
        ("a\r\nb", "a\nb"),
        ("</script>", "</script>"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown
