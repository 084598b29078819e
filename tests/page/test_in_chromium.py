"""The page in a real browser, headless: `tox -e page`, with a Chromium of the machine.

It is looked for by the names that distributions give it (on Debian: apt-get install chromium), or
is given by PPRANK_CHROMIUM.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_scene import ABOUT, RUN, Rank, part, timeline

from pytest_pprank.oplog.read.wait_graph import explain_waits
from pytest_pprank.report.page.build import build
from pytest_pprank.report.page.folder import INDEX, PARTS
from pytest_pprank.report.page.parts import TestPart, write_run, write_test
from pytest_pprank.report.page.timeline import Timeline
from pytest_pprank.report.page.waits import graph_of
from pytest_pprank.trace.file import (
    ERROR,
    FAULT,
    FINDING,
    FORWARD,
    ITERATION,
    LOG,
    MEMORY,
    PHASE,
    STATE,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("PPRANK_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is here")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
EVIL = "</script><img src=x onerror=\"document.title='pwned'\">'\" \x1b[31mred \ud800"
PHONE = {"width": 390, "height": 844}
MANY = 10_000
DRAWN = 3000
"""The frame budget: the most events and arrows that one frame may draw, however many there are."""
LINES = 40
"""The most rows of the list that may exist at once."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@dataclass
class Seen:
    """A page that is open, and what must not happen there: errors, and requests to elsewhere."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def run(self, script: str, value: object = None) -> Any:
        return self.page.evaluate(script, value)

    def open(self, anchor: str) -> None:
        """Open the view of a test, and wait until its timeline is drawn."""
        self.run("(anchor) => { location.hash = anchor; }", anchor)
        self.page.wait_for_function(
            "(anchor) => document.body.dataset.ready === anchor && document.querySelector("
            "`.view[data-anchor='${anchor}'] canvas`).dataset.drawn !== undefined",
            arg=anchor,
        )

    def number(self, kind: str, words: str = "") -> int:
        """Return the number of the first event of a kind with these words in its name."""
        return int(
            self.run(
                "([kind, words]) => current.data.events.findIndex("
                "(event) => event.kind === kind && event.name.includes(words))",
                [kind, words],
            )
        )

    def click(self, number: int) -> None:
        """Click an event on the canvas."""
        x, y = self.run(
            "(number) => { const lanes = current.lanes, event = lanes.events[number];"
            " const left = Math.max(lanes.x(event.start), 0);"
            " const right = Math.min(lanes.x(lanes.end(event)), lanes.width);"
            " return [(left + right) / 2, lanes.rowOf.get(number).y + 8 - lanes.box.scrollTop]; }",
            number,
        )
        self.page.locator(".view.open canvas").click(position={"x": x, "y": y})

    @property
    def selected(self) -> int:
        return int(self.run("() => current.lanes.selected"))

    @property
    def panel(self) -> str:
        return str(self.page.locator(".view.open .panel").inner_text())

    def frame(self) -> dict[str, int]:
        """Return what the next frame has drawn."""
        drawn: dict[str, int] = self.run(
            "() => new Promise((done) => { current.lanes.draw();"
            " requestAnimationFrame(() => requestAnimationFrame(() => done(current.lanes.drawn)));"
            " })"
        )
        return drawn


@pytest.fixture
def see(browser: Browser) -> Iterator[Callable[..., Seen]]:
    """Open a page; at the end, check that it made no error and asked nobody for anything."""
    opened: list[Seen] = []

    def open_page(path: Path, **context: Any) -> Seen:
        seen = Seen(browser.new_context(**context).new_page())
        opened.append(seen)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on(
            "console",
            lambda it: seen.errors.extend([it.text] * (it.type in ("error", "warning"))),
        )
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(path.as_uri())
        return seen

    yield open_page
    for seen in opened:
        assert seen.errors == []
        elsewhere = [url for url in seen.requests if not url.startswith(("file:", "data:"))]
        assert elsewhere == []
        assert len([url for url in seen.requests if url.startswith("file:")]) == 1
        seen.page.context.close()


def scene(folder: Path) -> tuple[Timeline, TestPart]:
    """Return a timeline with an event of each important kind, and a hang."""
    first, second = Rank(folder, 0), Rank(folder, 1)
    for rank in (first, second):
        rank.trace.begin(PHASE, "call")
        rank.trace.event(STATE, "before the first iteration", {"waiting": [], "free": 8})
        loop = rank.trace.begin(ITERATION, "iteration 0", iteration=0)
        forward = rank.trace.begin(FORWARD, "extend req-0", {"mode": "extend"}, iteration=0)
        rank.trace.event(MEMORY, "KV taken: 5 tokens", iteration=0)
        rank.trace.event(LOG, "SGLang said something", {"text": "SGLang said something"})
        rank.trace.end(forward)
        rank.trace.end(loop)
        rank.trace.event(STATE, "after iteration 0", {"waiting": ["req-1"], "free": 8})
    first.complete(first.send(1))
    second.complete(second.recv(0))
    first.trace.event(FAULT, "messages", {"delay": "3 ms"})
    first.trace.event(FINDING, "p2p", {"finding": EVIL})
    first.trace.event(ERROR, EVIL)
    first.recv(1)
    second.recv(0)
    ledgers = {0: first.ledger(), 1: second.ledger()}
    made = timeline(first, second, until=time.monotonic())
    graph = graph_of(explain_waits(ledgers, {}), {0: "call", 1: EVIL})
    return made, part(of=made, waits=graph, verdict="hung", summary=EVIL, failure=EVIL)


def crowd(folder: Path) -> Timeline:
    """Return a timeline of MANY events: spans, moments and messages."""
    first, second = Rank(folder, 0), Rank(folder, 1)
    for number in range(MANY // 10):
        for rank in (first, second):
            loop = rank.trace.begin(ITERATION, f"iteration {number}", iteration=number)
            for word in ("taken", "freed"):
                rank.trace.event(MEMORY, f"KV {word} {number}", iteration=number)
            rank.trace.end(loop)
            rank.trace.event(STATE, f"after {number}", {"n": number}, iteration=number)
        first.complete(first.send(1))
        second.complete(second.recv(0))
    return timeline(first, second)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    parts = made / PARTS
    parts.mkdir()
    (made / "ranks").mkdir()
    (made / "crowd").mkdir()
    _, hang = scene(made / "ranks")
    write_test(parts, "1", hang)
    write_test(parts, "2", part(f"test_it.py::test_green[{EVIL}]", outcome="passed", started=2.0))
    many = crowd(made / "crowd")
    assert len(many.events) == MANY
    write_test(parts, "3", part("test_it.py::test_crowd", of=many, started=3.0))
    write_run(parts, "main", RUN)
    build(made, parts, ABOUT)
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return folder / INDEX


@pytest.fixture(scope="module")
def hang() -> str:
    return part().anchor


@pytest.fixture(scope="module")
def many() -> str:
    return part("test_it.py::test_crowd").anchor


def test_the_table_leads_to_a_test_and_back(see: Callable[..., Seen], page: Path) -> None:
    seen = see(page)
    assert seen.page.locator("tr.test").count() == 3
    seen.page.click("text=test_it.py::test_it[pp2]")
    seen.page.wait_for_selector(".view.open canvas")
    assert not seen.page.locator("#run").is_visible()
    seen.page.click(".view.open .crumbs a")
    seen.page.wait_for_selector("#run:not([hidden])")
    assert seen.page.locator(".view.open").count() == 0


def test_tests_are_found_and_filtered(see: Callable[..., Seen], page: Path) -> None:
    seen = see(page)
    seen.page.fill("#find-test", "CROWD")
    assert seen.page.locator("tr.test:visible").count() == 1
    seen.page.fill("#find-test", "")
    seen.page.check("#only-red")
    assert seen.page.locator("tr.test:visible").count() == 2
    assert seen.page.inner_text("#tests-shown") == "2 of 3"


def test_a_click_shows_what_is_known_of_an_event(
    see: Callable[..., Seen], page: Path, hang: str
) -> None:
    seen = see(page)
    seen.open(hang)
    number = seen.number("forward")
    seen.click(number)
    assert seen.selected == number
    for words in ("extend req-0", "forward · rank 0: stage 0 of 2", "lasted", "SGLang said"):
        assert words in seen.panel
    rows = seen.page.locator(".view.open .panel .state tr")
    states = [rows.nth(at).inner_text().split("\t") for at in range(rows.count())]
    assert [[cell.strip() for cell in row] for row in states] == [
        ["", "before the first iteration", "after iteration 0"],
        ["waiting", "none", "req-1"],
        ["free", "8", "8"],
    ]
    assert seen.page.locator(".view.open .panel .changed th").all_inner_texts() == ["waiting"]


def test_a_message_leads_to_its_partner(see: Callable[..., Seen], page: Path, hang: str) -> None:
    seen = see(page)
    seen.open(hang)
    seen.click(seen.number("message", "send"))
    assert "arrives at rank 1: recv from rank 0" in seen.panel
    seen.page.click(".view.open .links button")
    assert seen.selected == seen.number("message", "recv from rank 0")
    assert "comes from rank 0: send to rank 1" in seen.panel
    seen.page.keyboard.press("f")
    assert seen.selected == seen.number("message", "send")


def test_a_hang_shows_its_graph_and_the_messages_without_a_partner(
    see: Callable[..., Seen], page: Path, hang: str
) -> None:
    seen = see(page)
    seen.open(hang)
    assert seen.page.locator(".view.open path.wait").count() == 2
    for box in seen.page.locator(".view.open svg .node").all():
        around = box.bounding_box()
        whole = seen.page.locator(".view.open svg").bounding_box()
        assert around is not None
        assert whole is not None
        assert whole["x"] <= around["x"]
        assert around["x"] + around["width"] <= whole["x"] + whole["width"] + 1
    lines = seen.page.locator(".view.open .unmet button")
    assert lines.count() == 2
    lines.nth(1).click()
    assert "never met\trank 0 did not send" in seen.panel
    assert "ended\tnever" in seen.panel


def test_no_text_of_a_test_is_read_as_html(see: Callable[..., Seen], page: Path, hang: str) -> None:
    seen = see(page)
    seen.open(hang)
    seen.click(seen.number("error"))
    assert "</script><img src=x" in seen.panel
    assert seen.page.locator("img").count() == 0
    assert seen.page.title().startswith("pytest-pprank: ")


def test_search(see: Callable[..., Seen], page: Path, hang: str) -> None:
    seen = see(page)
    seen.open(hang)
    seen.page.keyboard.press("/")
    seen.page.keyboard.type("kv taken rank 1")
    assert seen.page.locator(".view.open .bar [role=status]").inner_text().startswith("1 of ")
    seen.page.keyboard.press("Enter")
    assert "KV taken: 5 tokens" in seen.panel
    assert "rank 1: stage 1 of 2" in seen.panel
    seen.page.keyboard.press("Escape")
    seen.page.keyboard.press("/")
    seen.page.keyboard.press("Control+a")
    seen.page.keyboard.type("iteration")
    seen.page.keyboard.press("Escape")
    before, found = seen.selected, []
    for _ in range(3):
        seen.page.keyboard.press("n")
        found.append(seen.selected)
    matches = seen.run("() => current.list.numbers")
    after = [number for number in matches if number > before]
    assert len(matches) > 3
    assert found == [*after, *matches][:3]
    seen.page.keyboard.press("p")
    assert seen.selected == found[1]


def test_keys(see: Callable[..., Seen], page: Path, hang: str, many: str) -> None:
    seen = see(page)
    seen.open(hang)
    seen.page.keyboard.press("ArrowRight")
    first = seen.selected
    seen.page.keyboard.press("ArrowRight")
    second = seen.selected
    assert second > first >= 0
    assert seen.run("(n) => current.data.events[n].lane", second) == 0
    seen.page.keyboard.press("ArrowDown")
    assert seen.run("() => current.data.events[current.lanes.selected].lane") == 1
    seen.page.keyboard.press("ArrowUp")
    assert seen.run("() => current.data.events[current.lanes.selected].lane") == 0
    size = "() => current.lanes.last - current.lanes.first"
    seen.page.keyboard.press("0")
    whole = seen.run(size)
    seen.page.keyboard.press("+")
    assert seen.run(size) == pytest.approx(whole / 2)
    seen.page.keyboard.press("-")
    seen.page.keyboard.press("z")
    assert seen.run(size) < whole
    seen.page.keyboard.press("Escape")
    assert seen.selected == -1
    seen.page.keyboard.press("]")
    seen.page.keyboard.press("]")
    seen.page.wait_for_function("(anchor) => document.body.dataset.ready === anchor", arg=many)
    seen.page.keyboard.press("?")
    assert seen.page.locator("dialog#keys").is_visible()
    seen.page.keyboard.press("Escape")
    seen.page.keyboard.press("Escape")
    seen.page.wait_for_selector("#run:not([hidden])")


def test_a_kind_can_be_hidden(see: Callable[..., Seen], page: Path, hang: str) -> None:
    seen = see(page)
    seen.open(hang)
    rows = "() => current.lanes.rows.length"
    before = seen.run(rows)
    button = seen.page.locator(".view.open .kinds button", has_text="iteration")
    button.click()
    assert seen.run(rows) == before  # its band has states, too
    seen.page.locator(".view.open .kinds button", has_text="state").click()
    assert seen.run(rows) == before - 2
    button.click()
    assert seen.run(rows) == before


def test_both_axes_have_all_events_in_order(
    see: Callable[..., Seen], page: Path, hang: str
) -> None:
    seen = see(page)
    seen.open(hang)
    places = "() => current.data.events.map((event) => current.lanes.axis.place(event.start))"
    back = (
        "() => Math.max(...current.data.events.map((event) => Math.abs("
        "current.lanes.axis.time(current.lanes.axis.place(event.start)) - event.start)))"
    )
    for _ in range(2):
        found = seen.run(places)
        assert found == sorted(found)
        assert seen.run(back) < 1e-9
        seen.page.locator(".view.open .bar button", has_text="axis").click()


def test_light_and_dark(see: Callable[..., Seen], page: Path, hang: str) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        seen = see(page, color_scheme=scheme)
        seen.open(hang)
        seen.frame()
        paper = seen.run("() => getComputedStyle(document.body).backgroundColor")
        title = seen.run(
            "() => { const { canvas, context, laneAt } = current.lanes;"
            " const data = context.getImageData(0, 0, canvas.width, canvas.height).data;"
            " const found = new Set();"
            " for (let at = 0; at < data.length; at += 4)"
            "   if (data[at + 3] === 255) found.add(data.slice(at, at + 3).join());"
            " return [...found]; }"
        )
        colours[scheme] = (paper, sorted(title))
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert colours["dark"][0] == "rgb(14, 18, 23)"
    assert colours["light"][1] != colours["dark"][1]
    assert min(len(found) for _, found in colours.values()) > 20, "nearly nothing is drawn"


def test_a_change_of_the_scheme_is_followed(
    see: Callable[..., Seen], page: Path, hang: str
) -> None:
    seen = see(page, color_scheme="light")
    seen.open(hang)
    seen.frame()
    light = seen.run("() => current.lanes.colour('ink')")
    seen.page.emulate_media(color_scheme="dark")
    seen.page.wait_for_function("(light) => current.lanes.colour('ink') !== light", arg=light)


def test_on_a_phone(see: Callable[..., Seen], page: Path, hang: str, many: str) -> None:
    seen = see(page, viewport=PHONE, has_touch=True, is_mobile=True)
    width = "() => document.documentElement.scrollWidth"
    assert seen.run(width) == PHONE["width"]
    for anchor in (hang, many):
        seen.open(anchor)
        assert seen.run(width) == PHONE["width"]
        assert seen.run("() => current.lanes.width") > 300
    number = seen.number("memory")
    x, y = seen.run(
        "(number) => { current.lanes.showAll(); const lanes = current.lanes;"
        " const box = lanes.canvas.getBoundingClientRect();"
        " lanes.canvas.scrollIntoView(); const at = lanes.canvas.getBoundingClientRect();"
        " return [at.x + lanes.x(lanes.events[number].start),"
        " at.y + lanes.rowOf.get(number).y + 8]; }",
        number,
    )
    seen.page.touchscreen.tap(max(x, 2), y)
    assert "memory" in seen.panel


def test_many_events_are_drawn_within_the_budget(
    see: Callable[..., Seen], page: Path, many: str
) -> None:
    seen = see(page)
    seen.open(many)
    assert seen.run("() => current.data.events.length") == MANY
    frames = []
    for key in ("0", "+", "+", "+", "+", "+", "+", "+"):
        seen.page.keyboard.press(key)
        frames.append(seen.frame())
    for share in (0.5, 3, -2, 10, -100):
        seen.run("(share) => current.lanes.pan(share)", share)
        frames.append(seen.frame())
    seen.page.locator(".view.open .bar button", has_text="axis").click()
    seen.page.keyboard.press("0")
    frames.append(seen.frame())
    drawn = [frame["events"] + frame["links"] for frame in frames]
    assert max(drawn) <= DRAWN, drawn
    assert min(drawn) > 10, drawn
    assert frames[7]["events"] < frames[0]["events"], "a part takes less than the whole"


def test_the_list_has_only_the_rows_in_view(
    see: Callable[..., Seen], page: Path, many: str
) -> None:
    seen = see(page)
    seen.open(many)
    rows = seen.page.locator(".view.open .list .row")
    for share in (0, 0.37, 1):
        seen.run(
            "(share) => { const box = current.list.box;"
            " box.scrollTop = share * (box.scrollHeight - box.clientHeight); }",
            share,
        )
        seen.page.wait_for_function(
            "() => { const box = current.list.box.getBoundingClientRect(); const rows = "
            "[...current.list.rows.children].map((row) => row.getBoundingClientRect());"
            " return rows.length && rows[0].top <= box.top + 2"
            " && rows.at(-1).bottom >= box.bottom - 24; }"
        )
        assert 5 < rows.count() <= LINES
    last = seen.run("() => current.data.events.at(-1).name")
    assert rows.last.inner_text().endswith(last)


def test_a_selected_event_is_brought_into_view(
    see: Callable[..., Seen], page: Path, many: str
) -> None:
    seen = see(page)
    seen.open(many)
    seen.run("() => { current.lanes.showAll(); current.lanes.zoom(0.01); }")
    for words in ("KV taken 7", "KV freed 980"):
        number = seen.number("memory", words)
        seen.run("(number) => current.select(number, true)", number)
        seen.frame()
        left = seen.run("(n) => current.lanes.x(current.lanes.events[n].start)", number)
        assert 0 <= left <= seen.run("() => current.lanes.width")
        assert seen.page.locator(".view.open .list .row.selected").inner_text().endswith(words)


def test_the_address_of_a_test_opens_it(see: Callable[..., Seen], page: Path, hang: str) -> None:
    seen = see(page)
    seen.page.goto(f"{page.as_uri()}#{hang}")
    seen.page.wait_for_selector(".view.open canvas")
    assert seen.page.locator(".view.open").get_attribute("data-anchor") == hang
    seen.requests.clear()
    seen.requests.append(page.as_uri())


def test_an_unknown_address_shows_all_tests(see: Callable[..., Seen], page: Path) -> None:
    seen = see(page)
    seen.run("() => { location.hash = 'none-such\"]'; }")
    seen.page.wait_for_selector("#run:not([hidden])")


def test_without_a_script_the_texts_are_there(browser: Browser, page: Path, hang: str) -> None:
    opened = browser.new_context(java_script_enabled=False).new_page()
    opened.goto(f"{page.as_uri()}#view-{hang}")
    assert opened.locator("tr.test").count() == 3
    assert opened.locator("pre.summary").first.inner_text().startswith("</script>")
    opened.context.close()
