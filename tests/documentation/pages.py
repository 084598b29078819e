"""The documentation pages: their list, their generated parts, their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from documentation.tables import TABLES

ROOT = Path(__file__).parents[2]
RENEW = "`tox -e tables` writes the tables anew"

_GENERATED = re.compile(
    r"(<!-- generated: (?P<name>[\w-]+) begin -->\n).*?(<!-- generated: (?P=name) end -->)",
    re.DOTALL,
)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def pages(root: Path = ROOT) -> list[Path]:
    """Return README and all pages of docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def renewed(text: str) -> str:
    """Return a page with its generated parts updated."""
    return _GENERATED.sub(lambda it: f"{it[1]}{TABLES[it['name']]()}\n{it[3]}", text)


def generated_parts(text: str) -> list[str]:
    """Return the names of a page's generated parts."""
    return [it["name"] for it in _GENERATED.finditer(text)]


def wrong_links(page: Path) -> Iterator[str]:
    """Yield the links of a page to missing files or headings."""
    for target in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{target}: there is no {file}"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{target}: no heading of {file.name} has this anchor"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = _HEADING.findall(_FENCED.sub("", text))
    return {re.sub(r"[^\w\- ]", "", it.lower()).strip().replace(" ", "-") for it in headings}
