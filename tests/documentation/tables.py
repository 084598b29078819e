"""The generated tables, by the name in their begin and end marks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from documentation import product
from documentation.product import Described


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_row(cells) for cells in [head, ["---"] * len(head), *rows])


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _markdown(text: str) -> str:
    """Return the text of a docstring as Markdown."""
    return text.replace("``", "`")


def _options() -> str:
    rows = [
        (_code(f"{it.flag} {it.metavar}".strip()), _code(it.default), _markdown(it.help))
        for it in product.options()
    ]
    return _table(["option", "default", "what it does"], rows)


def _described(head: Sequence[str], rows: Iterable[Described]) -> str:
    cells = ((_code(it.name), _markdown(it.about), it.when) for it in rows)
    return _table(head, [each[: len(head)] for each in cells])


TABLES: dict[str, Callable[[], str]] = {
    "options": _options,
    "commands": lambda: _described(
        ["`python -m pytest_pprank`", "what it does"], product.commands()
    ),
    "markers": lambda: _described(["keyword", "what it says"], product.marker_keywords()),
    "fixtures": lambda: _described(["fixture", "what it is", "scope"], product.fixtures()),
    "assertions": lambda: _described(["assertion", "passes if"], product.assertions()),
    "engine": lambda: _described(["`engine.`", "what it does"], product.methods("Engine")),
    "disagg": lambda: _described(["`disagg.`", "what it does"], product.methods("Disagg")),
    "sanitizers": lambda: _described(["sanitizer", "finds", "needs"], product.sanitizers()),
    "reverts": lambda: _described(["name", "fix", "SGLang"], product.reverts()),
    "operators": lambda: _described(["operator", "what is broken"], product.operators()),
    "equivalent": lambda: _described(["rule", "what is cut"], product.equivalent()),
    "perturbations": lambda: _described(
        ["perturbation", "what it does", "needs"], product.perturbations()
    ),
}
