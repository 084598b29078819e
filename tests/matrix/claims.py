"""Claims about what was run: a comment before each claim names commit and code.

    <!-- ran: commit="..." tree="..." date="2026-11-26" command="tox -e matrix" -->

`tree` is the output of ``git rev-parse COMMIT:pytest_pprank``: the code that was run. A claim about
other code than the checkout's is an error, except those with ``kind="history"``, which are in a
chapter "History".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from matrix.product import ROOT, Product, git, tree_of

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
PAGE = "docs/support-matrix.md"
RENEW = "`tox -e matrix` renews the table (it runs), `tox -e matrix -- --withdraw` takes it back"

_BLOCK = re.compile(r"^<!-- ran: (.*?) -->$", re.DOTALL | re.MULTILINE)
_FACT = re.compile(r'(\w+)="([^"]*)"')
_HASH = re.compile(r"[0-9a-f]{40}")
_HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
_CHAPTER = re.compile(r"^## (.*)$", re.MULTILINE)
_TABLE = re.compile(r"^\|.*\n\| ?:?-+", re.MULTILINE)
_TELLS_OF_RUNS = re.compile(
    r"\b(was|were|been) run\b|\bin one run\b|\bhow fast\b|\bmeasured\b|\bon the same cores\b",
    re.IGNORECASE,
)
_NOT_RUN = "Not run with the code of this commit."


@dataclass(frozen=True)
class Claim:
    """One comment: its facts, its line, and its chapter."""

    facts: dict[str, str] = field(default_factory=dict)
    line: int = 0
    chapter: str = ""

    def __str__(self) -> str:
        """Return the comment."""
        facts = [f'{name}="{it}"' for name, it in self.facts.items()]
        return f"<!-- ran: {' '.join(facts)} -->"


def claims(text: str) -> Iterator[Claim]:
    """Yield the claims of a page."""
    for found in _BLOCK.finditer(text):
        facts = dict(_FACT.findall(found.group(1)))
        chapters = _CHAPTER.findall(text, 0, found.start())
        yield Claim(facts, _line(text, found.start()), chapters[-1] if chapters else "")


def problems(text: str, now: Product | None, root: Path = ROOT) -> list[str]:
    """Return what is wrong with a page's claims; `now` is None if there is no checkout."""
    found = [*_tables_without_a_claim(text)]
    for claim in claims(text):
        where = f"line {claim.line}: "
        if claim.facts.get("kind") == "history":
            found += [where + it for it in _wrong_in_history(claim)]
        else:
            found += [where + it for it in _wrong(claim, now, root)]
    return found


def _wrong(claim: Claim, now: Product | None, root: Path) -> Iterator[str]:
    commit, tree = claim.facts.get("commit", ""), claim.facts.get("tree", "")
    if not _HASH.fullmatch(commit) or not _HASH.fullmatch(tree):
        yield "names no commit, or no tree, of what was run"
    elif now is not None and tree != now.tree:
        yield f"is about other code than this commit's (tree {tree[:10]}, here {now.tree[:10]})"
    elif now is not None and now.changed:
        yield f"is not about what is changed here: {', '.join(now.changed)}"
    elif now is not None and tree_of(commit, root) not in ("", tree):
        yield f"commit {commit[:10]} has other code than the tree {tree[:10]}"


def _wrong_in_history(claim: Claim) -> Iterator[str]:
    if claim.chapter != "History":
        yield 'has kind="history" but is not in the chapter "History"'
    if not claim.facts.get("commit"):
        yield 'names no commit; where none is known: commit="not recorded"'


def _tables_without_a_claim(text: str) -> Iterator[str]:
    """Yield tables of run results without such a comment, by the words before the table."""
    ends = [0]
    for table in _TABLE.finditer(text):
        headings = [it.start() for it in _HEADING.finditer(text, ends[-1], table.start())]
        before = text[max([ends[-1], *headings]) : table.start()]
        if _TELLS_OF_RUNS.search(before) and not _BLOCK.search(before):
            yield f"line {_line(text, table.start())}: a table of what was run without `<!-- ran: `"
        ends.append(table.end())


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def written(page: str, generated: str) -> str:
    """Return a page with its generated part replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"matrix: {PAGE} lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{generated.strip()}\n{END}{after}"


def withdrawn(root: Path = ROOT) -> str:
    """Return the text in place of a table: where to find the last committed one."""
    committed = git("show", f"HEAD:{PAGE}", root=root, check=False)
    _, _, rest = committed.partition(BEGIN)
    generated = rest.partition(END)[0].strip()
    last = next(claims(generated), None)
    if last is None:
        return generated or _NOT_RUN
    holder = git("rev-parse", "--short", "HEAD", root=root)
    commit, date = last.facts["commit"][:10], last.facts["date"]
    return f"{_NOT_RUN} The last table is of commit {commit}, {date}: `git show {holder}:{PAGE}`"
