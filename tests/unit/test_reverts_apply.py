"""Reverts applied to functions of small packages, decorated in the ways that SGLang's are."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import pickle
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pytest_pprank.errors import SeamMissing, UsageError
from pytest_pprank.sglang.reverts import Edit, Patch, Revert, reached
from pytest_pprank.sglang.reverts.apply import apply, check
from pytest_pprank.sglang.reverts.match import Text

_numbers = itertools.count()
Write = Callable[[str], ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Import a module ``<package>.mod`` with the given source."""
    package = f"toy{next(_numbers)}"
    monkeypatch.syspath_prepend(tmp_path)

    def write_module(source: str) -> ModuleType:
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "mod.py").write_text(textwrap.dedent(source))
        return importlib.import_module(f"{package}.mod")

    yield write_module
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def edit(match: str, replacement: str = "") -> Edit:
    return Edit(Text(match), "replace", replacement)


def revert(module: ModuleType, name: str, *edits: Edit, preamble: str = "") -> Revert:
    return Revert("toy", (Patch((f"{module.__name__}.{name}",), edits, preamble),))


def root_of(module: ModuleType) -> Path:
    assert module.__file__
    return Path(module.__file__).parent


def test_function_and_its_aliases_run_the_edited_code(write: Write) -> None:
    module = write("""
        def f(x):
            y = x + 1
            return y
        alias = f
    """)
    applied = apply(revert(module, "f", edit("y = x + 1", "y = x - 1")))
    assert (module.f(5), module.alias(5)) == (4, 4)
    assert [(a.target, a.lineno, a.already) for a in applied] == [
        (f"{module.__name__}.f", 2, False)
    ]
    assert applied[0].filename == module.__file__


DECORATORS = {
    "wraps": """
        def deco(fn):
            @functools.wraps(fn)
            def wrapper(*args):
                return fn(*args)
            return wrapper
    """,
    "bare_closure": """
        def deco(fn):
            def wrapper(*args):
                return fn(*args)
            return wrapper
    """,
    "twice": """
        def once(fn):
            return lambda *args: fn(*args)
        def deco(fn):
            return once(functools.wraps(fn)(once(fn)))
    """,
    "lru_cache": "deco = functools.lru_cache",
    "staticmethod_in_closure": """
        def deco(fn):
            held = staticmethod(fn)
            def wrapper(*args):
                return held.__func__(*args)
            return wrapper
    """,
    "callable_object": """
        class deco:
            def __init__(self, fn):
                self.fn = fn
            def __call__(self, *args):
                return self.fn(*args)
            def __get__(self, obj, cls=None):
                return functools.partial(self, obj)
    """,
    "partial_in_default": """
        def deco(fn):
            def wrapper(*args, held=functools.partial(fn)):
                return held(*args)
            return wrapper
    """,
    "context_manager": """
        @contextlib.contextmanager
        def guard():
            yield
        deco = guard()
    """,
}


@pytest.mark.parametrize("decorator", DECORATORS.values(), ids=DECORATORS.keys())
@pytest.mark.parametrize("name", ["f", "C.method"])
def test_reaches_decorated_functions(write: Write, decorator: str, name: str) -> None:
    module = write(
        "import contextlib, functools\n"
        + textwrap.dedent(decorator)
        + textwrap.dedent("""
            @deco
            def f(x):
                return x + 1
            class C:
                @deco
                def method(self, x):
                    return x + 1
        """)
    )
    before = module.f, inspect.getattr_static(module.C, "method")
    apply(revert(module, name, edit("return x + 1", "return x - 1")))
    got = module.f(5) if name == "f" else module.C().method(5)
    assert got == 4
    assert before == (module.f, inspect.getattr_static(module.C, "method"))


def test_kinds_of_methods(write: Write) -> None:
    module = write("""
        class Outer:
            class C:
                @classmethod
                def c(cls, x): 
                    return x + 1
                @staticmethod
                def s(x):
                    return x + 1
                @property
                def p(self):
                    return 5 + 1
                def g(self, x):
                    yield x + 1
                async def a(self, x):
                    return x + 1
                async def ag(self, x):
                    yield x + 1
    """)
    match = {"p": ("5 + 1", "5 - 1"), "g": ("yield x + 1", "yield x - 1")}
    match["ag"] = match["g"]
    for name in ("c", "s", "p", "g", "a", "ag"):
        old, new = match.get(name, ("return x + 1", "return x - 1"))
        old, new = (f"return {t}" if name == "p" else t for t in (old, new))
        apply(revert(module, f"Outer.C.{name}", edit(old, new)))
    c = module.Outer.C()

    async def collect() -> list[int]:
        return [x async for x in c.ag(5)]

    results = [c.c(5), c.s(5), c.p, *c.g(5), asyncio.run(c.a(5)), *asyncio.run(collect())]
    assert results == [4] * 6


def test_super_private_names_and_closures_keep_working(write: Write) -> None:
    module = write("""
        from __future__ import annotations
        class Base:
            def f(self):
                return ["base"]
        class C(Base):
            def __init__(self):
                self.__secret = 1
            def f(self):
                out = super().f()
                out.append(self.__secret)
                add = lambda x: out.append((x, self.__secret))
                add(2)
                return out
    """)
    apply(revert(module, "C.f", edit("add(2)", "add(3)\nadd(4)")))
    assert module.C().f() == ["base", 1, (3, 1), (4, 1)]


def test_an_edit_may_take_out_the_last_use_of_super(write: Write) -> None:
    module = write("""
        class Base:
            def f(self):
                self.seen = True
        class C(Base):
            seen = False
            def f(self):
                super().f()
    """)
    apply(revert(module, "C.f", edit("super().f()")))
    c = module.C()
    c.f()
    assert c.seen is False


def test_an_edit_may_not_close_over_something_new(write: Write) -> None:
    module = write("""
        class C:
            def f(self):
                return 1
    """)
    with pytest.raises(UsageError, match="close over __class__, which it did not before"):
        check(revert(module, "C.f", edit("return 1", "return super()")), root_of(module))


def test_an_edit_may_not_turn_a_generator_into_a_plain_function(write: Write) -> None:
    module = write("""
        def f():
            yield 1
    """)
    with pytest.raises(UsageError, match="generator"):
        check(revert(module, "f", edit("yield 1")), root_of(module))


def test_tracebacks_show_the_lines_of_the_file(write: Write) -> None:
    module = write("""
        def f(x):
            # a comment
            if x:
                y = 1
                z = 2
            w = (
                3
            )
            raise ValueError(x)
    """)
    longer = "a = 1\nb = 2\nc = 3\nd = 4\ne = [0, 1][x]"
    apply(revert(module, "f", edit("if x:\n  y = 1\n  z = 2", longer), edit("w = 3", "1 / x")))
    with pytest.raises(ValueError, match="1") as kept:
        module.f(1)
    with pytest.raises(ZeroDivisionError) as replaced:
        module.f(0)
    with pytest.raises(IndexError) as longest:
        module.f(2)
    infos = (kept, replaced, longest)
    frames = [traceback.extract_tb(info.value.__traceback__)[-1] for info in infos]
    assert [(f.filename, f.lineno, f.line) for f in frames] == [
        (module.__file__, 10, "raise ValueError(x)"),
        (module.__file__, 7, "w = ("),
        (module.__file__, 6, "z = 2"),
    ]


def test_calls_on_imported_names(write: Write) -> None:
    # Python 3.11 and later compile these differently from calls on other names
    module = write("""
        try:
            import os
        except ImportError:
            os = None
        def f(x):
            return os.path.join(x, "a") + os.sep.join(x)
    """)
    apply(revert(module, "f", edit('return os.path.join(x, "a") + os.sep.join(x)', "pass")))
    assert module.f("x") is None


def test_defaults_and_annotations_stay(write: Write) -> None:
    module = write("""
        def f(x: int = 3, *, y: str = "a") -> str:
            return y * x
    """)
    apply(revert(module, "f", edit("return y * x", "return y + str(x)")))
    assert module.f() == "a3"
    assert module.f.__annotations__ == {"x": int, "y": str, "return": str}


def test_applying_twice_changes_nothing_the_second_time(write: Write) -> None:
    module = write("""
        def f(x):
            return x + 1
    """)
    again = revert(module, "f", edit("return x + 1", "return x + 2"))
    assert [a.already for a in apply(again)] == [False]
    code = module.f.__code__
    assert [a.already for a in apply(again)] == [True]
    assert module.f.__code__ is code


def test_a_second_revert_of_one_function_is_refused(write: Write) -> None:
    module = write("""
        def f(x):
            return x + 1
    """)
    apply(revert(module, "f", edit("return x + 1", "return x + 2")))
    with pytest.raises(UsageError, match=r"runs other code than .*mod\.py holds"):
        apply(revert(module, "f", edit("return x + 1", "return x + 3")))
    assert module.f(0) == 2


def test_a_name_that_does_not_lead_to_the_function(write: Write) -> None:
    module = write("""
        def f(x):
            return x + 1
        f = abs
    """)
    with pytest.raises(SeamMissing, match=r"cannot reach .*mod\.f .*line 2"):
        apply(revert(module, "f", edit("return x + 1", "return x")))


def test_nothing_is_half_applied(write: Write) -> None:
    module = write("""
        def f(x):
            return x + 1
        def g(x):
            return x + 1
        def h(x):
            return x + 1
        h = abs
    """)
    name = module.__name__
    good = Patch((f"{name}.f",), (edit("return x + 1", "return x"),))
    for other, match in (("g", "return y"), ("h", "return x + 1")):
        bad = Patch((f"{name}.{other}",), (edit(match),))
        with pytest.raises((UsageError, SeamMissing)):
            apply(Revert("toy", (good, bad)))
        assert module.f(1) == 2


def test_patches_of_one_function_add_up(write: Write) -> None:
    module = write("""
        def f(x):
            return x + 1
    """)
    target = (f"{module.__name__}.f",)
    first = Patch(target, (edit("return x + 1", "y = x\nreturn y"),))
    apply(Revert("toy", (first, Patch(target, (edit("y = x", "y = -x"),)))))
    assert module.f(3) == -3


@pytest.mark.parametrize("docstring", ["", '"""Doc."""'], ids=["plain", "documented"])
def test_prepend_append_and_preamble(write: Write, docstring: str) -> None:
    module = write(f"""
        def f(log):
            {docstring}
            log.append("b")  # here
            return log
    """)
    edits = (
        Edit(Text('log.append("b")'), "prepend", 'log.append("a")'),
        Edit(Text('log.append("b")'), "append", 'if log:\n    log.append("c")'),
    )
    apply(revert(module, "f", *edits, preamble="import os\nlog.append(os.sep)"))
    assert module.f([]) == ["/", "a", "b", "c"]
    assert module.f.__doc__ == ("Doc." if docstring else None)


def test_emptied_blocks_and_texts_over_several_lines(write: Write) -> None:
    module = write("""
        def f(x):
            if x:
                x = 2
            return "a"
    """)
    text = 'return """1\n  2\n3"""'
    apply(revert(module, "f", edit("x = 2", "# gone"), edit("return 'a'", text)))
    assert module.f(1) == "1\n  2\n3"


def test_reverts_travel_to_the_workers(write: Write) -> None:
    module = write("""
        def f(x):
            return x + 1
    """)
    original = revert(module, "f", edit("return x + 1", "return x"))
    copy = pickle.loads(pickle.dumps(original))
    assert copy == original
    apply(copy)
    assert module.f(1) == 1


def test_the_first_target_that_exists_is_used(write: Write) -> None:
    module = write("""
        class C:
            def new(self):
                return 1
            def old(self):
                return 1
    """)
    names = [f"{module.__name__}.{n}" for n in ("newest.C.new", "C.newest", "C.new", "C.old")]
    apply(Revert("toy", (Patch(tuple(names), (edit("return 1", "return 2"),)),)))
    assert (module.C().new(), module.C().old()) == (2, 1)


def test_calls_of_edited_functions_are_noted_where_it_is_asked_for(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write('''
        class C:
            def f(self):
                """Docs."""
                x = 1
                return x

            def g(self):
                yield 1
    ''')
    noted = tmp_path / "noted"
    monkeypatch.setenv(reached.VARIABLE, str(noted))
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "a/test_a.py::test_b[x y] (call)")
    apply(revert(module, "C.f", edit("x = 1", "x = 2")))
    apply(revert(module, "C.g", preamble="pass"))
    assert reached.read(noted) == ()
    assert [module.C().f(), module.C().f()] == [2, 2]
    found = reached.Reached(f"{module.__name__}.C.f", "a/test_a.py::test_b[x y]", "call")
    assert reached.read(noted) == (found,)
    assert list(module.C().g()) == [1]
    assert [each.target.rpartition(".")[2] for each in reached.read(noted)] == ["f", "g"]
    assert len(noted.read_text().splitlines()) == 2  # not one line per call


def test_nothing_is_noted_else(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reached.VARIABLE, raising=False)
    module = write("def f():\n    x = 1\n    return x\n")
    apply(revert(module, "f", edit("x = 1", "x = 2")))
    assert "note" not in module.f.__code__.co_names
