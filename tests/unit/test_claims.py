"""Claims in README and docs about what was run name a commit whose code is the current code."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import claims
from matrix.product import PACKAGE, ROOT, Product, git, is_checkout, product

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMIT, TREE = "a" * 40, "b" * 40
NOW = Product(COMMIT, TREE)
TABLE = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_claims_are_about_the_code_that_is_here(page: Path) -> None:
    now = product() if is_checkout() else None
    found = claims.problems(page.read_text(encoding="utf-8"), now)
    listed = "\n".join(f"{page.relative_to(ROOT)}, {it}" for it in found)
    assert not found, f"{listed}\n{claims.RENEW}"


def page(**facts: str) -> str:
    return f"## Now\n\nWhat was run:\n\n{claims.Claim(facts)}\n{TABLE}"


def test_a_claim_of_this_code_holds() -> None:
    assert claims.problems(page(commit=COMMIT, tree=TREE), NOW) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"tree": TREE}, "names no commit"),
        ({"commit": COMMIT}, "names no commit, or no tree"),
        ({"commit": "main", "tree": TREE}, "names no commit"),
        ({"commit": COMMIT, "tree": "c" * 40}, "other code than this commit's (tree cccccccccc"),
        ({"commit": COMMIT, "tree": TREE, "kind": "history"}, 'not in the chapter "History"'),
    ],
)
def test_a_claim_of_no_commit_or_of_other_code_does_not(facts: dict[str, str], words: str) -> None:
    (problem,) = claims.problems(page(**facts), NOW)
    assert problem.startswith("line 5: ")
    assert words in problem


def test_a_claim_does_not_hold_beside_changes_that_are_in_no_commit() -> None:
    now = Product(COMMIT, TREE, (f"{PACKAGE}/plugin.py",))
    (problem,) = claims.problems(page(commit=COMMIT, tree=TREE), now)
    assert f"{PACKAGE}/plugin.py" in problem


def test_history_may_be_of_other_code_and_says_what_it_knows() -> None:
    old = (
        f"## History\n\n### How fast\n\n{claims.Claim({'kind': 'history', 'commit': 'x'})}\n{TABLE}"
    )
    assert claims.problems(old, NOW) == []
    (problem,) = claims.problems(old.replace(' commit="x"', ""), NOW)
    assert "names no commit" in problem


@pytest.mark.parametrize(
    "words",
    ["## What was run where", "How fast, on two cores:", "in one run of tox", "as measured:"],
)
def test_a_table_of_what_was_run_needs_a_claim(words: str) -> None:
    (problem,) = claims.problems(f"{words}\n\n{TABLE}", NOW)
    assert problem.startswith("line 3: a table of what was run")
    other = f"{words}\n\n{claims.Claim({'commit': COMMIT, 'tree': TREE})}\n{TABLE}"
    assert claims.problems(other, NOW) == []


def test_each_table_of_what_was_run_needs_a_claim_of_its_own() -> None:
    claimed = page(commit=COMMIT, tree=TREE)
    for words in ("And what else was run:", "## How fast"):
        (problem,) = claims.problems(f"{claimed}\n{words}\n\n{TABLE}", NOW)
        assert problem.startswith("line 12: a table of what was run")


def test_any_other_table_needs_none() -> None:
    claimed = page(commit=COMMIT, tree=TREE)
    assert claims.problems(f"{claimed}\n## Options\n\nWhat they do:\n\n{TABLE}", NOW) == []
    assert claims.problems(f"## How fast\n\nVery.\n\n## Options\n\n{TABLE}", NOW) == []


def test_only_the_generated_part_of_a_page_is_written() -> None:
    text = f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n"
    assert claims.written(text, "new\n") == text.replace("old", "new")
    with pytest.raises(SystemExit, match=r"support-matrix\.md lacks"):
        claims.written("nothing\n", "new")


class TestCheckout:
    """In a git checkout of its own."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        git("init", "-q", root=tmp_path)
        (tmp_path / PACKAGE).mkdir()
        (tmp_path / "docs").mkdir()
        self.commit(tmp_path, f"{PACKAGE}/code.py", "1")
        return tmp_path

    def commit(self, root: Path, file: str, text: str) -> Product:
        (root / file).write_text(text)
        git("add", "-A", root=root)
        who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        git(*who, "commit", "-qm", "x", root=root)
        return product(root)

    def table(self, of: Product) -> str:
        claim = claims.Claim({"commit": of.commit, "tree": of.tree, "date": "2026-11-26"})
        return f"{claims.BEGIN}\n{claim}\n{TABLE}{claims.END}\n"

    def test_code_is_told_from_all_else(self, root: Path) -> None:
        first = product(root)
        page = self.table(first)
        later = self.commit(root, claims.PAGE, page)
        assert later.commit != first.commit
        assert claims.problems(page, later, root) == []
        other = self.commit(root, f"{PACKAGE}/code.py", "2")
        assert "other code" in claims.problems(page, other, root)[0]

    def test_a_tree_that_its_commit_does_not_have_is_a_wrong_claim(self, root: Path) -> None:
        first = product(root)
        now = self.commit(root, f"{PACKAGE}/code.py", "2")
        page = self.table(Product(first.commit, now.tree))
        (problem,) = claims.problems(page, now, root)
        assert f"commit {first.commit[:10]} has other code" in problem

    def test_what_is_in_no_commit_is_changed(self, root: Path) -> None:
        (root / PACKAGE / "new.py").write_text("")
        (root / "docs" / "new.md").write_text("")
        assert product(root).changed == (f"{PACKAGE}/new.py",)

    def test_a_shallow_clone_will_do(
        self, root: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        first = product(root)
        now = self.commit(root, claims.PAGE, self.table(first))
        clone = tmp_path_factory.mktemp("clone")
        git("clone", "-q", "--depth", "1", f"file://{root}", ".", root=clone)
        assert product(clone) == now
        assert claims.problems(self.table(first), product(clone), clone) == []

    def test_a_table_that_is_withdrawn_says_where_it_was(self, root: Path) -> None:
        first = product(root)
        self.commit(root, claims.PAGE, self.table(first))
        self.commit(root, f"{PACKAGE}/code.py", "2")
        text = claims.withdrawn(root)
        assert f"is of commit {first.commit[:10]}, 2026-11-26: `git show " in text
        holder = text.partition("`git show ")[2].partition(":")[0]
        assert git("show", f"{holder}:{claims.PAGE}", root=root) == self.table(first).strip()
        now = self.commit(root, claims.PAGE, claims.written(self.table(first), text))
        assert claims.problems((root / claims.PAGE).read_text(), now, root) == []
        assert claims.withdrawn(root) == text  # the second time: the same

    def test_before_the_first_table_there_is_nothing_to_show(self, root: Path) -> None:
        assert claims.withdrawn(root) == "Not run with the code of this commit."
