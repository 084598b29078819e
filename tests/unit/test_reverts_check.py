"""What the check on source files finds, accepts and refuses; nothing is imported."""

from __future__ import annotations

import ast
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_pprank.errors import DoesNotFit, UsageError
from pytest_pprank.sglang.reverts import Edit, Patch, Revert
from pytest_pprank.sglang.reverts.apply import check, edited_in
from pytest_pprank.sglang.reverts.match import Shape, Text
from pytest_pprank.sglang.static.installed import inspect_package

MODULE = '''
raise RuntimeError("the check must not import this")
import typing
from elsewhere import imported

def helper(a, b=1):
    """Docs, with b = 1 in it."""
    if a is None and (b or
                      a.ready):  # why
        a.ids = b.staged.to(a.device, non_blocking=True)
        b.staged = None
    elif b:
        a.done()
    for item in a:
        if item.name == 'x' or item.name == f"y{b}":
            a.send(item, event=a.launch_event, group=b)
    a.done()
    x = 1 + b
    a.x = 1
    (x, y) = a.sync(
        x,
        b,
    )
    return x

@typing.overload
def twice(a: int) -> int: ...
@typing.overload
def twice(a: str) -> str: ...
def twice(a):
    return a * 2

if typing.TYPE_CHECKING:
    def platform(): return 1
else:
    def platform(): return 2

class Base:
    def inherited(self):
        return 1

class C(Base):
    class Inner:
        def f(self):
            return 1; return 2
    def own(self):
        s = "ü"; return s

def nested(a):
    if a == "äöü" and a.inner:
        if a.inner:
            a.go()
    while a.sync(
        1,
        2,
    ):
        a.go()
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create the package ``toy``, version 1.2, with ``mod`` and ``sub.deep`` in it."""
    package = tmp_path / "toy"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "mod.py").write_text(MODULE)
    (package / "sub" / "__init__.py").write_text("def here():\n    return 1\n")
    (package / "sub" / "deep.py").write_text("def f():\n    return 1\n")
    info = tmp_path / "toy-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.2\n")
    return package


def make(match: str | Shape, replacement: str = "", target: str = "toy.mod.helper") -> Revert:
    found = Text(textwrap.dedent(match)) if isinstance(match, str) else match
    return Revert("r1", (Patch((target,), (Edit(found, "replace", replacement),)),))


ACCEPTED = {
    "other_layout": "if a is None and (b or a.ready):\n"
    "  a.ids = b.staged.to(\n     a.device,\n     non_blocking = True,\n  )\n"
    "  b.staged = None\n"
    "elif b:\n  a.done()",
    "two_statements": "a.ids = (b.staged.to(a.device, non_blocking=True))\nb.staged = None",
    "quotes": "for item in a:\n if item.name == \"x\" or item.name == f'y{b}':",
    "header": "if item.name == 'x' or item.name == f\"y{b}\":  # comment",
    "keyword_argument": "event=a.launch_event,",
    "keyword_argument_without_comma": "event=a.launch_event",
    "elif_header": "elif b:",
    "condition": "a is None and (b or a.ready)",
    "parentheses_and_commas": "x, y = a.sync(x, b)",
    "not_inside_of_a_longer_one": "a.x = 1",
}


@pytest.mark.parametrize("match", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_layout_makes_no_difference(root: Path, match: str) -> None:
    replacement = {
        "elif b:": "elif not b:",
        "a is None and (b or a.ready)": "True",
        "event=a.launch_event,": "event=None,",
        "event=a.launch_event": "event=None",
    }.get(match, "if True:" if match.rstrip().endswith(("comment", ":")) else "")
    if match.startswith("for"):
        replacement = "for item in b:\n    if True:"
    check(make(match, replacement), root)
    assert "toy.mod" not in sys.modules


REFUSED = {
    "twice": ("a.done()", r"`a.done\(\)`, which is there 2 times \(lines 13, 17\): ambiguous"),
    "missing": ("b.staged = False", r"not there; nearest, line 11: `b.staged = None`"),
    "part_of_a_name": ("x = 1", r"`x = 1`, which is not there; nearest, line 1[89]"),
    "part_of_a_sum": ("1 +", "is not there"),
    "elif_as_if": ("if b:\n    a.done()", "is not there"),
    "in_the_docstring": ("b = 1 in it", "is not there"),
    "in_the_signature": ("b=1", "is not there"),
    "not_even_tokens": ("return )(", "is not there"),
}


@pytest.mark.parametrize(("match", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_missing_and_ambiguous_matches_are_refused(root: Path, match: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as info:
        check(make(match), root)
    assert "revert r1: toy.mod.helper (toy 1.2): edit 1 looks for" in str(info.value)


TARGETS = {
    "toy.mod.helpr": r"toy.mod does not define helpr \(did you mean 'helper'\?\)",
    "toy.mod.imported": r"does not define imported \(it is imported there from elsewhere\)",
    "toy.mod.Base.own": r"toy.mod.Base does not define own \(the class C .* does\)",
    "toy.mod.C": "C is a class",
    "toy.mod.helper.x": "helper is a function",
    "toy.mod.platform": r"toy.mod defines platform 2 times \(lines 34, 36\): ambiguous",
    "toy.mot.helper": r"no module toy.mot \(did you mean 'mod'\?\)",
    "toy.sub.deeper.f": r"no module toy.sub.deeper \(did you mean 'deep'\?\)",
    "toy.mod": "toy.mod is no module with a function of that name",
    "other.mod.f": "not in the package toy",
}


@pytest.mark.parametrize(("target", "message"), TARGETS.items())
def test_missing_and_ambiguous_targets_are_refused(root: Path, target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as info:
        check(make("return 1", target=target), root)
    assert f"revert r1: {target} (toy 1.2)" in str(info.value)


@pytest.mark.parametrize("target", ["toy.sub.deep.f", "toy.sub.here"])
def test_targets_in_packages(root: Path, target: str) -> None:
    check(make("return 1", "return 2", target), root)


def test_what_it_is_made_for_is_told_where_it_does_not_fit(root: Path) -> None:
    revert = replace(make("b.staged = False"), versions="1.0, 1.1")
    with pytest.raises(DoesNotFit, match=r"`b.staged = None`; it is made for SGLang 1.0, 1.1$"):
        check(revert, root)
    with pytest.raises(UsageError, match="does not compile") as refused:
        check(replace(make("return x", "nonlocal x"), versions="1.0"), root)
    assert "made for" not in str(refused.value)


FOLLOWED = {
    "inherited": ("class D(Base, Other): pass", "D.f", "toy.b.Base.f"),
    "inherited_from_afar": ("class D(C): pass\nclass C(afar.Base): pass", "D.f", "toy.b.Base.f"),
    "from_a_nested_class": ("class D:\n class C(Base): pass", "D.C.f", "toy.b.Base.f"),
    "imported": ("", "renamed", "toy.b.g"),
    "imported_class": ("", "Base.f", "toy.b.Base.f"),
    "imported_module": ("", "sub.here", "toy.sub.here"),
    "imported_in_a_package": ("", "again", "toy.b.g"),
    "module_of_a_package": ("", "afar.g", "toy.b.g"),
    "shared_base": ("class A(Base): pass\nclass D(A, Base): pass", "D.f", "toy.b.Base.f"),
}


@pytest.mark.parametrize(("source", "name", "found"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_imports_and_base_classes_are_followed(
    root: Path, source: str, name: str, found: str
) -> None:
    imports = "import toy.b as afar\nfrom .b import Base, g as renamed\nfrom . import sub\n"
    imports += "from toy.sub import again\nfrom elsewhere import Other\n"
    here = "def here():\n    return 1\n"
    base = "class Base:\n    def f(self):\n        return 1\n"
    (root / "a.py").write_text(imports + source)
    (root / "b.py").write_text(base + here.replace("here", "g"))
    (root / "sub" / "__init__.py").write_text("from ..b import g as again\n" + here)
    (edited,) = edited_in(make("return 1", "return 2", f"toy.a.{name}"), root)
    assert edited.target == found


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class A(B): pass\nclass B(A): pass", "toy.a.A does not define f"),
        (
            "class B:\n def f(self): pass\nclass C:\n def f(self): pass\nclass A(B, C): pass",
            r"it may be toy.a.B.f or toy.a.C.f: ambiguous",
        ),
    ],
)
def test_base_classes_that_lead_nowhere_or_to_several(
    root: Path, source: str, message: str
) -> None:
    (root / "a.py").write_text(source)
    with pytest.raises(DoesNotFit, match=message):
        check(make("pass", target="toy.a.A.f"), root)


def test_overloads_are_not_the_definition(root: Path) -> None:
    check(make("return a * 2", target="toy.mod.twice"), root)


def test_no_target_names_them_all(root: Path) -> None:
    patch = Patch(("toy.mod.old", "toy.new.f"), (Edit(Text("return 1")),))
    with pytest.raises(
        UsageError, match=r"toy.mod.old or toy.new.f \(toy 1.2\): .*old.*; .*toy.new"
    ):
        check(Revert("r1", (patch,)), root)


@pytest.mark.parametrize(
    ("match", "replacement", "message"),
    [
        ("event=a.launch_event,", "event=,", "does not parse: .* line 16"),
        ("return x", "nonlocal x", "does not compile"),
        ("def helper(a, b=1):", "x = 1\ndef helper(a, b=1):", "gives is not one function"),
        ("elif  b:", "", "ends with the header of a block"),
    ],
)
def test_edits_that_give_no_python_are_refused(
    root: Path, match: str, replacement: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check(make(match, replacement), root)


@pytest.mark.parametrize("match", ["return 1", "return 2"])
def test_statements_on_a_shared_line_are_refused(root: Path, match: str) -> None:
    with pytest.raises(UsageError, match="line 45 shares its line with other code"):
        check(make(match, target="toy.mod.C.Inner.f"), root)


SHAPES = {
    "innermost": Shape("If", mentions=("ids", "staged"), assigns=("ids",)),
    "keyword": Shape("Expr", mentions=("send", "event")),
    "subscript_or_tuple": Shape("Assign", assigns=("y",)),
    "test": Shape("If", mentions=("staged",), part="test"),
    "target": Shape("Assign", mentions=("sync",), part="targets"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_statements_by_shape(root: Path, shape: Shape) -> None:
    check(make(shape, "_" if shape.part else ""), root)


@pytest.mark.parametrize(
    ("match", "replacement"),
    [
        (Shape("If", mentions=("inner",)), ""),  # the innermost one
        (Shape("If", mentions=("a",), part="test"), "True"),
        ("while a.sync(1, 2):", "while a.sync(1):"),
        ('a == "äöü" and a.inner', "True"),
    ],
)
def test_nested_statements(root: Path, match: str | Shape, replacement: str) -> None:
    check(make(match, replacement, "toy.mod.nested"), root)


def test_columns_behind_other_letters(root: Path) -> None:
    outer = Shape("If", mentions=("inner", "a"), part="test")
    inner = Edit(Shape("If", mentions=("inner",)))
    patch = Patch(("toy.mod.nested",), (inner, Edit(outer, text="True")))
    check(Revert("r1", (patch,)), root)


@pytest.mark.filterwarnings("error")
def test_warnings_about_the_source_are_no_errors(root: Path) -> None:
    (root / "mod.py").write_text('def f():\n    x = "\\d"\n    return x is 1\n')
    check(make('x = "\\d"', target="toy.mod.f"), root)


def test_a_file_that_this_python_cannot_read(root: Path) -> None:
    (root / "mod.py").write_text("def f():\n    later syntax\n")
    with pytest.raises(UsageError, match=r"mod\.py does not parse: invalid syntax \(line 2\)"):
        check(make("x", target="toy.mod.f"), root)


def test_shapes_must_be_unique_and_there(root: Path) -> None:
    with pytest.raises(UsageError, match=r"an Assign statement that mentions b .* 2 times"):
        check(make(Shape("Assign", mentions=("b",), assigns=("x",))), root)
    with pytest.raises(
        UsageError, match="assigns gone, which is not there; nearest, line 8: `if a"
    ):
        check(make(Shape("If", mentions=("staged",), assigns=("gone",))), root)


class TestReleases:
    """Patches for only some releases of SGLang."""

    @pytest.fixture
    def of(self) -> Revert:
        patches = [
            Patch(
                ("toy.mod.helper",), (Edit(Text("x = 1 + b"), text="x = 2"),), releases="<0.5.22"
            ),
            Patch(
                ("toy.mod.helper",), (Edit(Text("a.x = 1"), text="a.x = 3"),), releases=">=0.5.22"
            ),
        ]
        return Revert("r", tuple(patches))

    @staticmethod
    def edited(revert: Revert, root: Path, version: str) -> str:
        (root / "_version.py").write_text(f"__version__ = version = {version!r}\n")
        inspect_package.cache_clear()
        (edited,) = edited_in(revert, root)
        return ast.unparse(edited.after)

    @pytest.mark.parametrize(
        ("version", "x", "y"),
        [("0.5.21", "2", "1"), ("0.5.22", "1 + b", "3"), ("no", "1 + b", "3")],
    )
    def test_those_of_the_release_are_taken(
        self, of: Revert, root: Path, version: str, x: str, y: str
    ) -> None:
        text = self.edited(of, root, version)
        assert f"    x = {x}\n" in text
        assert f"    a.x = {y}\n" in text

    def test_none_for_the_release_is_a_misfit(self, of: Revert, root: Path) -> None:
        with pytest.raises(DoesNotFit, match=r"no patch of it is for this release.*<0\.5\.22"):
            self.edited(replace(of, patches=of.patches[:1]), root, "0.5.23")
