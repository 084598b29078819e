"""README and docs: generated tables are up to date, links work, no block is left unrun.

tests/behaviour/test_docs_run.py (torch only) and tests/sglang/test_docs_on_sglang.py run the
blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from documentation import blocks, commands, pages, product, replay
from documentation.blocks import Command
from documentation.tables import TABLES

PAGES = [pytest.param(it, id=it.stem) for it in pages.pages()]
MOST_LINES = 120
"""Length limit of README: a screen or two."""


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert pages.renewed(text) == text, f"a table of {page.name} is stale: {pages.RENEW}"


def test_each_table_stands_on_one_page() -> None:
    found = Counter(
        name for page in pages.pages() for name in pages.generated_parts(page.read_text("utf-8"))
    )
    assert found == dict.fromkeys(TABLES, 1)


def test_a_stale_table_is_renewed() -> None:
    begin, end = (f"<!-- generated: commands {it} -->" for it in ("begin", "end"))
    new = pages.renewed(f"before\n{begin}\nold\n{end}\nafter\n")
    assert new.startswith(f"before\n{begin}\n| `python -m pytest_pprank` |")
    assert new.endswith(f"|\n{end}\nafter\n")
    assert "| `setup` | give this environment a real SGLang" in new


def test_each_keyword_of_the_marker_is_documented() -> None:
    assert [it.name for it in product.marker_keywords()] == product.declared_keywords()


def test_all_rows_say_something() -> None:
    assert [it.flag for it in product.options() if not it.help] == []
    described = (
        product.commands, product.marker_keywords, product.fixtures, product.assertions,
        product.sanitizers, product.perturbations, product.reverts,
        lambda: product.methods("Engine"), lambda: product.methods("Disagg"),
    )  # fmt: skip
    for rows in described:
        assert rows() != []
        assert [it.name for it in rows() if not it.about] == []


def test_readme_is_short() -> None:
    lines = (pages.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES


def test_readme_has_the_commands_that_ci_runs() -> None:
    script = (pages.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    run = re.findall(r'bin/tox" run(?: -e (\w+))?$', script, re.MULTILINE)
    lines = [it.command.line for it in replay.steps() if it.block.page == "README"]
    shown = {part.strip() for line in lines for part in line.split("&&")}
    assert run != []
    assert {f"tox -e {name}" if name else "tox" for name in run} <= shown


def test_readme_leads_to_every_page() -> None:
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    for page in pages.pages()[1:]:
        assert f"(docs/{page.name})" in text, f"README has no link to docs/{page.name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(pages.wrong_links(page)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "a.md", tmp_path / "b.md"
    other.write_text("# A `word`: two, three\n")
    page.write_text("[x](b.md#a-word-two-three) [y](c.md) [z](b.md#four) [w](https://x.org/y)\n")
    first, second = pages.wrong_links(page)
    assert "c.md: there is no" in first
    assert "b.md#four: no heading" in second


@pytest.mark.parametrize("page", PAGES)
def test_a_test_covers_each_block(page: Path) -> None:
    assert list(blocks.problems(page)) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```python\nx = 1\n```\n", "no test"),
        ("```ruby\nx\n```\n", "'ruby'"),
        ("```\nx\n```\n", "no language"),
        ("```console\nls\n```\n", "does not begin with a command"),
        ("words\n\n    code\n", "by indentation"),
        ("```python\ndef test_x(): ...\n", "not closed"),
        ("<!-- file: a.yaml -->\n```yaml\na: 1\n```\n", "no later command"),
        ("```diff\n-a\n+b\n```\n", "no command with its output"),
    ],
)
def test_a_block_that_no_test_covers_is_found(text: str, words: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    (problem,) = blocks.problems(page)
    assert words in problem


def test_a_file_that_a_shown_run_uses_is_covered(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run = "```console\n$ pytest test_a.py\n1 passed\n```\n"
    page.write_text(f"<!-- file: test_a.py -->\n```python\nx = 1\n```\n{run}")
    assert list(blocks.problems(page)) == []


@pytest.mark.parametrize("step", replay.steps(), ids=str)
def test_commands_could_be_run(step: replay.Step, tmp_path: Path) -> None:
    assert list(commands.problems(step.command, step.lay_out(tmp_path))) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pytest --pprank-divice sim", "no option --pprank-divice"),
        ("pytest test_none.py", "there is no test_none.py"),
        ("python -m pytest_pprank setup --gpu", "--gpu is unknown"),
        ("python -m pytest_pprank nurse", "invalid choice"),
        ("pip install tox && tox -e suit", "no environment suit"),
        ("rm -rf /", "no rule"),
    ],
)
def test_a_command_that_could_not_be_run_is_found(line: str, words: str, tmp_path: Path) -> None:
    (problem,) = commands.problems(Command(line), tmp_path)
    assert words in problem


def test_output_is_compared_but_for_what_differs_in_each_run() -> None:
    found = "=== FAILURES ===\nE  hung: for 5.4 s (mixin.py:775), pid 12\n== 1 failed in 2.13s =="
    shown = "== FAILURES ==\nE hung: for 9.9 s (mixin.py:1), pid 7\n...\n=== 1 failed in 0.10s ==="
    assert replay.is_as_shown(shown, found)
    assert replay.is_as_shown("...\nE  hung: ...\n...", found)
    assert replay.is_as_shown(shown, found.replace("in 2.13s", "in 112.13s (0:01:52)"))
    assert not replay.is_as_shown(shown.replace("1 failed", "2 failed"), found)
