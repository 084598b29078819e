"""Reads from the code what README and docs say about the product; no other module here does so.

Needs neither torch nor SGLang: code that cannot be imported without them is read as source.
"""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest_pprank
from pytest_pprank import __main__ as commands_of_product
from pytest_pprank import fixtures as fixtures_of_product
from pytest_pprank import markers as markers_of_product
from pytest_pprank import options as options_of_product
from pytest_pprank.checks import SANITIZERS
from pytest_pprank.faults import PERTURBATIONS
from pytest_pprank.mutants.equivalent import RULES
from pytest_pprank.mutants.operators import OPERATORS
from pytest_pprank.sglang.reverts.named import NAMED

PACKAGE = Path(pytest_pprank.__file__).parent
WITHOUT_SGLANG = frozenset({"pprank", "process_group"})
"""Fixtures of tests that need torch alone."""
_NOT_FOR_TESTS = frozenset(
    {
        "at_end_of_iteration",
        "at_start_of_iteration",
        "before_each_step",
        "close",
        "disturb",
        "abandon",
    }
)
"""Public methods of `engine` and `disagg` that perturbations and fixtures call."""


@dataclass(frozen=True)
class Option:
    """A command line option; its ini option has the same name with underscores."""

    flag: str
    metavar: str
    default: str
    help: str


@dataclass(frozen=True)
class Described:
    """A documented name, its description, and when it applies (scope, or what it needs)."""

    name: str
    about: str
    when: str = ""


class _Recorder:
    """Stands in for pytest's parser, whose internals differ from release to release."""

    def __init__(self) -> None:
        self.flags: dict[str, dict[str, Any]] = {}
        self.inis: dict[str, Any] = {}

    def getgroup(self, *_: str) -> _Recorder:
        return self

    def addoption(self, flag: str, **facts: Any) -> None:
        self.flags[flag] = facts

    def addini(self, name: str, help: str, type: str = "string", default: Any = None) -> None:
        del help, type
        self.inis[name] = default


def options() -> list[Option]:
    """Return the options of the command line; KeyError for one without an ini option."""
    parser = _Recorder()
    options_of_product.add_options(parser)  # type: ignore[arg-type]
    found = []
    for flag, facts in parser.flags.items():
        default = parser.inis[flag.lstrip("-").replace("-", "_")]
        shown = "off" if default is False else str(default or "")
        text = facts["help"].removesuffix(f" (default: {default})")
        found.append(Option(flag, facts.get("metavar", ""), shown, text))
    return found


def ini_options() -> frozenset[str]:
    """Return the names of the ini options."""
    return frozenset(it.flag.lstrip("-").replace("-", "_") for it in options())


def marker_keywords() -> list[Described]:
    """Return the keywords of the marker ``pprank``: the documented fields of its class."""
    source = Path(str(markers_of_product.__file__)).read_text(encoding="utf-8")
    fields = _class(source, markers_of_product.RankMark.__name__).body
    return [
        Described(field.target.id, paragraph(str(doc.value.value)))
        for field, doc in pairwise(fields)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
    ]


def declared_keywords() -> list[str]:
    """Return the keywords that the marker's declaration (``pytest --markers``) names."""
    declaration = markers_of_product.DECLARATIONS[0].partition(")")[0]
    return [word.partition("=")[0] for word in declaration.removeprefix("pprank(").split(", ")]


def fixtures() -> list[Described]:
    """Return the public fixtures with the first paragraph of their docstring, and their scope."""
    tree = ast.parse(Path(str(fixtures_of_product.__file__)).read_text(encoding="utf-8"))
    found = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(it) for it in node.decorator_list]
        if any(it.startswith("pytest.fixture") for it in decorators):
            scope = "session" if "scope='session'" in "".join(decorators) else "test"
            found.append(Described(node.name, paragraph(ast.get_docstring(node)), scope))
    return found


def assertions() -> list[Described]:
    """Return the assertions with their arguments."""
    names = [it for it in pytest_pprank.__all__ if it.startswith("assert_")]
    functions = [getattr(pytest_pprank, name) for name in names]
    return [
        Described(
            f"{it.__name__}({_arguments(it)})",
            paragraph(inspect.getdoc(it)).removeprefix("Assert that "),
        )
        for it in functions
    ]


def _arguments(function: Any) -> str:
    bare = [
        it.replace(annotation=inspect.Parameter.empty)
        for it in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(bare))[1:-1]


def methods(public_name: str) -> list[Described]:
    """Return the public methods and attributes of a class that `pytest_pprank` exports."""
    return list(_methods(f"pytest_pprank.{pytest_pprank._LATER[public_name]}", public_name))


def _methods(module: str, name: str) -> Iterator[Described]:
    """Yield those of a class, then those of its base classes that are not public themselves."""
    file = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    tree = ast.parse(text := file.read_text(encoding="utf-8"))
    found = _class(text, name)
    for method in found.body:
        if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
            continue
        if method.name not in _NOT_FOR_TESTS:
            yield Described(_called(method), paragraph(ast.get_docstring(method)))
    bases = {base.id for base in found.bases if isinstance(base, ast.Name)}
    for it in ast.walk(tree):
        if isinstance(it, ast.ImportFrom) and it.module:
            for each in bases & {each.name for each in it.names} - {*pytest_pprank._LATER}:
                yield from _methods(it.module, each)


def _called(method: ast.FunctionDef) -> str:
    """Return a method as it is called, without types; a property by its name alone."""
    if any(ast.unparse(it) == "property" for it in method.decorator_list):
        return method.name
    arguments = method.args
    for it in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        it.annotation = None
    if arguments.kwarg:
        arguments.kwarg.annotation = None
    (arguments.posonlyargs or arguments.args).pop(0)
    shown = ast.unparse(arguments).removeprefix("/, ")
    return f"{method.name}({shown.replace('=ROLES', '=both')})"


def sanitizers() -> list[Described]:
    """Return the sanitizers with what they find, and what they need."""
    return [Described(it.name, it.about, _needs(it)) for it in SANITIZERS]


def perturbations() -> list[Described]:
    """Return the perturbations with what they do, and what they need."""
    return [
        Described(it.name, it.about, _needs(it) + ("; the test's marker" if it.opt_in else ""))
        for it in PERTURBATIONS
    ]


def _needs(row: Any) -> str:
    devices = f"device {' or '.join(row.devices)}" if row.devices else ""
    return ", ".join(it for it in ("SGLang" if row.sglang else "torch", devices) if it)


def reverts() -> list[Described]:
    """Return the fixes that can be reverted by name, and for which releases of SGLang."""
    return [
        Described(it.id, f"{it.title} ([PR {it.pr}]({it.url}))", it.versions)
        for it in NAMED.values()
    ]


def operators() -> list[Described]:
    """Return the operators of ``mutate``, in the order in which they take changes."""
    return [Described(it.name, it.words) for it in OPERATORS.values()]


def equivalent() -> list[Described]:
    """Return the rules by which ``mutate`` cuts mutants."""
    return [Described(rule.name, rule.words) for rule in RULES]


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m pytest_pprank``."""
    parser = argparse.ArgumentParser(prog="python -m pytest_pprank", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    subcommands = parser.add_subparsers()
    for register in commands_of_product._REGISTER:
        register(subcommands)
    return parser


def commands() -> list[Described]:
    """Return the commands of ``python -m pytest_pprank``."""
    (subcommands,) = (
        it for it in command_parser()._actions if isinstance(it, argparse._SubParsersAction)
    )
    return [Described(it.dest, it.help or "") for it in subcommands._choices_actions]


def paragraph(docstring: str | None) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


def _class(source: str, name: str) -> ast.ClassDef:
    (found,) = (it for it in _classes(source) if it.name == name)
    return found


def _classes(source: str) -> Iterator[ast.ClassDef]:
    return (it for it in ast.parse(source).body if isinstance(it, ast.ClassDef))
