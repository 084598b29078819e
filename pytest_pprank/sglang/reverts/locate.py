"""Finds the definition of a function in source files by its dotted name, importing nothing."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import CodeType

from pytest_pprank.errors import did_you_mean

from .source import FunctionNode, FunctionSource, Misfit, Refused, first_line

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class TargetMissing(Misfit):
    """The dotted name does not name a function in these files."""


@dataclass(frozen=True)
class Definition:
    """A function as its file defines it: its lines, and the classes and imports around it."""

    target: str
    module: str
    path: Path
    classes: tuple[ast.ClassDef, ...]
    imports: tuple[ast.stmt, ...]
    name: str
    lineno: int
    source: FunctionSource

    @property
    def qualname(self) -> tuple[str, ...]:
        """The names that lead from the module to the function."""
        return (*(node.name for node in self.classes), self.name)

    def compile(
        self, source: FunctionSource, filename: str, keep: tuple[str, ...] = ()
    ) -> CodeType:
        """Compile ``source`` as this function; raises `Refused` if Python cannot compile it.

        The function is compiled inside bare copies of its classes, so that ``super()`` and private
        names keep their meaning, and below the imports of its module: those from ``__future__``
        change the language, and Python 3.11 and later compile calls on imported names differently.
        ``keep``: free variables that the code must still close over, even if an edit removed their
        use.
        """
        node = source.numbered_node()
        node.body += _mention(keep, node)
        body: ast.stmt = node
        for outer in reversed(self.classes):
            body = _bare_class(outer, body)
        tree = ast.Module(body=[*self.imports, body], type_ignores=[])
        try:
            code = compile(tree, filename, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise Refused(f"the edited function does not compile: {error}") from None
        return _inner_code(code, self.name, self.lineno)


def version_of(package_root: Path) -> str:
    """Return e.g. ``"sglang 0.5.21"``, preferably from the metadata next to the package."""
    name = package_root.name
    for distribution in metadata.distributions(name=name, path=[str(package_root.parent)]):
        return f"{name} {distribution.version}"
    try:
        return f"{name} {metadata.version(name)}"  # an editable install
    except metadata.PackageNotFoundError:
        return f"{name} of unknown version"


def find_definition(target: str, package_root: Path) -> Definition:
    """Return the one definition that ``target`` names; raises `TargetMissing`.

    Follows imports and base classes, as Python does, to where the function is defined.
    """
    return _find(target, package_root, frozenset())


def _find(target: str, package_root: Path, seen: frozenset[str]) -> Definition:
    try:
        return _defined_there(target, package_root)
    except TargetMissing:
        names = [n for n in _other_names(target, package_root) if n not in seen]
        found = dict(_found(names, package_root, seen | {target}))
        if not found:
            raise
    if len(found) > 1:  # Python's choice would depend on the order of all bases
        raise Misfit(f"it may be {' or '.join(found)}: ambiguous")
    return next(iter(found.values()))


def _found(
    names: list[str], package_root: Path, seen: frozenset[str]
) -> Iterator[tuple[str, Definition]]:
    for name in names:
        with suppress(TargetMissing):
            definition = _find(name, package_root, seen)
            yield definition.target, definition


def _defined_there(target: str, package_root: Path) -> Definition:
    module, path, names = _split(target, package_root)
    text, tree = _parse(path)
    classes: list[ast.ClassDef] = []
    body = tree.body
    for position, name in enumerate(names[:-1]):
        found = _the_one(body, name, ".".join((module, *names[:position])))
        if not isinstance(found, ast.ClassDef):
            raise TargetMissing(f"{name} is a function in {path}, not a class")
        classes.append(found)
        body = found.body
    function = _the_one(body, names[-1], ".".join((module, *names[:-1])), tree)
    if isinstance(function, ast.ClassDef):
        raise TargetMissing(f"{names[-1]} is a class in {path}, not a function")
    return Definition(
        target,
        module,
        path,
        tuple(classes),
        tuple(s for s in _scope(tree.body) if isinstance(s, ast.Import | ast.ImportFrom)),
        function.name,
        first_line(function),
        FunctionSource.of(function, text.split("\n")),
    )


def _other_names(target: str, package_root: Path) -> list[str]:
    """Return other names of the same function: by its import, or in the base classes."""
    module, path, names = _split(target, package_root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    body = _parse(path)[1].body
    bases: list[str] = []
    for position, name in enumerate(names):
        rest = ".".join(names[position:])
        classes = [d for d in _definitions(body) if d.name == name]
        if not classes:
            inherited = [f"{module}.{base}.{rest}" for base in bases]
            return inherited or _imported(name, rest, body, package)
        body = classes[0].body
        bases = [ast.unparse(base) for base in getattr(classes[0], "bases", ())]
    return []


def _imported(name: str, dotted: str, body: list[ast.stmt], package: str) -> list[str]:
    """Return what ``dotted``, which starts with ``name``, is called where it is imported from."""
    rest = dotted[len(name) :]
    found = []
    for node in _scope(body):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        source = _source_of(node, package) if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            if name == (alias.asname or alias.name):
                found.append(f"{source}{alias.name}{rest}")
    return found


def _source_of(node: ast.ImportFrom, package: str) -> str:
    parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else []), ""])


def _split(target: str, package_root: Path) -> tuple[str, Path, tuple[str, ...]]:
    """Split a dotted name into module, file of the module, and names inside the module."""
    first, *rest = target.split(".")
    if first != package_root.name:
        raise TargetMissing(f"it is not in the package {package_root.name}")
    path, used = package_root, 0
    while used < len(rest) and (path / rest[used]).is_dir():
        path, used = path / rest[used], used + 1
    if used < len(rest) and (path / f"{rest[used]}.py").is_file():
        file, used = path / f"{rest[used]}.py", used + 1
    else:
        file = path / "__init__.py"
    names = tuple(rest[used:])
    module = ".".join((first, *rest[:used]))
    if not names or not file.is_file():
        raise TargetMissing(f"{module} is no module with a function of that name")
    if file.name == "__init__.py":
        known = [p.stem for p in path.iterdir()]
        if not _has(file, names[0]):
            near = did_you_mean(names[0], known)
            raise TargetMissing(f"there is no module {module}.{names[0]}{near}")
    return module, file, names


def _parse(file: Path) -> tuple[str, ast.Module]:
    stat = file.stat()
    return _parsed(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)  # many mutants are in few files
def _parsed(file: Path, mtime_ns: int, size: int) -> tuple[str, ast.Module]:
    del mtime_ns, size
    try:
        text = importlib.util.decode_source(file.read_bytes())
        return text, ast.parse(text)
    except SyntaxError as error:
        raise Refused(f"{file} does not parse: {error.msg} (line {error.lineno})") from None


def _has(file: Path, name: str) -> bool:
    body = _parse(file)[1].body
    return any(d.name == name for d in _definitions(body)) or bool(_imported(name, name, body, ""))


def _the_one(
    body: list[ast.stmt], name: str, owner: str, tree: ast.Module | None = None
) -> _Definition:
    defined = list(_definitions(body))
    found = [d for d in defined if d.name == name and not _is_overload(d)]
    if len(found) == 1:
        return found[0]
    if found:
        lines = ", ".join(str(first_line(node)) for node in found)
        raise Misfit(f"{owner} defines {name} {len(found)} times (lines {lines}): ambiguous")
    hint = did_you_mean(name, [d.name for d in defined]) or _elsewhere(name, body, tree)
    raise TargetMissing(f"{owner} does not define {name}{hint}")


def _elsewhere(name: str, body: list[ast.stmt], tree: ast.Module | None) -> str:
    """Say where a name that is used but not defined here comes from; "" if unknown."""
    for node in _scope(body):
        if isinstance(node, ast.ImportFrom) and any(
            name == (alias.asname or alias.name) for alias in node.names
        ):
            return f" (it is imported there from {'.' * node.level}{node.module or ''})"
    for other in _definitions(tree.body) if tree else ():
        if isinstance(other, ast.ClassDef) and any(
            d.name == name for d in _definitions(other.body)
        ):
            return f" (the class {other.name} of that module does)"
    return ""


def _definitions(body: list[ast.stmt]) -> Iterator[_Definition]:
    return (node for node in _scope(body) if isinstance(node, _Definition))


def _scope(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a scope, including those nested in ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, _Definition):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _scope(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from _scope(handler.body)


def _is_overload(node: _Definition) -> bool:
    return any(ast.unparse(d).split(".")[-1] == "overload" for d in node.decorator_list)


def _bare_class(outer: ast.ClassDef, only: ast.stmt) -> ast.ClassDef:
    fields = {field: getattr(outer, field) for field in outer._fields}
    bare = ast.ClassDef(**{**fields, "bases": [], "keywords": [], "decorator_list": []})
    bare.body = [only]
    return ast.copy_location(bare, outer)


def _mention(names: tuple[str, ...], node: FunctionNode) -> list[ast.stmt]:
    """Return statements that use ``names`` and never run (they compile to nothing)."""
    if not names:
        return []
    uses: list[ast.stmt] = [ast.Expr(ast.Name(name, ast.Load())) for name in names]
    never = ast.If(test=ast.Constant(value=False), body=uses, orelse=[])
    ast.copy_location(never, node.body[-1])
    return [ast.fix_missing_locations(never)]


def _inner_code(code: CodeType, name: str, lineno: int) -> CodeType:
    """Return the code object of the named function inside ``code``."""
    pending = [code]
    while pending:
        outer = pending.pop()
        if outer.co_name == name and outer.co_firstlineno == lineno:
            return outer
        pending += [const for const in outer.co_consts if isinstance(const, CodeType)]
    raise Refused(f"the compiler gave no code for {name}")  # pragma: no cover
