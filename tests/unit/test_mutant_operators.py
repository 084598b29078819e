"""Each operator: source in, mutated source out; and what the rules of equivalence cut."""

from __future__ import annotations

import ast
import textwrap

import pytest

from pytest_pprank.mutants.equivalent import RULES
from pytest_pprank.mutants.operators import OPERATORS
from pytest_pprank.mutants.points import Mutant, mutants_of
from pytest_pprank.mutants.source import Function, parse


def function_of(source: str) -> Function:
    (found, *_) = parse("pkg.mod", textwrap.dedent(source))
    return found


def mutants(source: str, operator: str = "") -> list[Mutant]:
    found = mutants_of(function_of(source))
    return [mutant for mutant in found if operator in ("", mutant.operator)]


def after(mutant: Mutant) -> str:
    """Return the body of the mutated function, in one line per statement."""
    source = mutant.function.source
    (span,) = mutant.place.find(source)
    body = source.replace(span, mutant.text).node.body
    return "\n".join(ast.unparse(statement) for statement in body)


def method(body: str, name: str = "f") -> str:
    return f"def {name}(self, batch, x, y):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"


CASES = [
    ("comparison", "return x < y", ["return x <= y"]),
    ("comparison", "return x in y is None", 
     ["return x not in y is None", "return x in y is not None"]),
    ("boolean", "z = x and y", ["z = x or y"]),
    ("boolean", "z = not x", ["z = x"]),
    ("arithmetic", "z = x + y * 2", ["z = x - y * 2", "z = x + y // 2"]),
    ("arithmetic", "x += 1", ["x -= 1"]),
    ("arithmetic", "z = 'a' + x", []),
    ("constant", "z = (1, True, 'a', 1.5)",
     ["z = (2, True, 'a', 1.5)", "z = (1, False, 'a', 1.5)"]),
    ("return-value", "return x", ["return None"]),
    ("return-value", "return None", []),
    ("remove-statement", "z = 1\nself.z = 2\nx.call()",
     ["z = 1\npass\nx.call()", "z = 1\nself.z = 2\npass"]),
    ("remove-statement", "yield x.call()", []),
    ("branch", "if x:\n  y()", ["if True:\n    y()", "if False:\n    y()"]),
    ("branch", "while True:\n  break", []),
    ("drop-wait", "x.event.synchronize()", ["pass"]),
    ("drop-event", "x.record()", ["pass"]),
    ("drop-broadcast", "x = broadcast_pyobj(x, 1)\ny = broadcast_pyobj([], 1)",
     ["pass\ny = broadcast_pyobj([], 1)"]),
    ("drop-send", "self.pp_group.send_object(x)", ["pass"]),
    ("drop-release", "self.allocator.free(x)", ["pass"]),
    ("turn-blocking", "x.to(y, non_blocking=False)", ["x.to(y, non_blocking=True)"]),
    ("turn-blocking", "x.send(y, async_send=True)", ["x.send(y, async_send=False)"]),
    ("swap-sends", "x.send(1)\ny.send(2)\nz()", ["y.send(2)\nx.send(1)\nz()"]),
    ("index-off-by-one", "z = self.mbs[mb_id]\nx(mb_id)",
     ["z = self.mbs[mb_id - 1]\nx(mb_id)", "z = self.mbs[mb_id]\nx(mb_id + 1)"]),
    ("host-mirror", "z = batch.lens + x\nw = batch.lens_cpu",
     ["z = batch.lens_cpu + x\nw = batch.lens_cpu", "z = batch.lens + x\nw = batch.lens"]),
    ("host-mirror", "z = batch.lens", []),
    ("keep-stale", "self.last = None\nself.n = 0\nself.m = x",
     ["pass\nself.n = 0\nself.m = x", "self.last = None\npass\nself.m = x"]),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "body", "expected"), CASES)
def test_operator(operator: str, body: str, expected: list[str]) -> None:
    assert [after(mutant) for mutant in mutants(method(body), operator)] == expected


def test_each_operator_has_a_case_or_a_test_of_its_own() -> None:
    own = {"forget-field", "skip-on-stage"}
    assert {case[0] for case in CASES} | own == set(OPERATORS)
    assert all(operator.words for operator in OPERATORS.values())


def test_a_field_is_forgotten_only_where_a_batch_is_filtered_merged_or_copied() -> None:
    body = "self.reqs = x\nself.n += y"
    found = mutants(method(body, "filter_batch"), "forget-field")
    assert list(map(after, found)) == ["pass\nself.n += y", "self.reqs = x\npass"]
    assert mutants(method(body, "prepare"), "forget-field") == []


def test_a_copy_leaves_out_one_argument() -> None:
    found = mutants(method("return Batch(a=1, b=2, c=3)", "copy"), "forget-field")
    assert [after(m) for m in found] == [
        "return Batch(b=2, c=3)",
        "return Batch(a=1, c=3)",
        "return Batch(a=1, b=2)",
    ]


def test_one_stage_leaves_a_call_out() -> None:
    (mutant,) = mutants(method("if x:\n  self.group.send(y)"), "skip-on-stage")
    assert "current_rank().stage != 0:\n        self.group.send(y)" in after(mutant)
    assert mutant.words == "not on the first stage: self.group.send(y)"


def test_a_change_belongs_to_the_first_operator_that_makes_it() -> None:
    found = mutants(method("x.send(y)"))
    assert [mutant.operator for mutant in found] == ["drop-send", "skip-on-stage"]


def test_every_mutant_of_a_function_parses_and_differs() -> None:
    source = method(
        """
        if x and not y:  # ä comment with letters of two bytes
            return [a for a in x if a.mb_id != 3]
        elif x is None:
            self.n = ("é", x[mb_id], lambda z: z + 1)
        elif y: self.m = 1
        while y > 0:
            with x:
                y -= 1
            try:
                x.send(y); x.recv()
            except ValueError:
                raise RuntimeError(f"{x + 1}") from None
        """
    )
    found = mutants(source)
    texts = [after(mutant) for mutant in found]
    assert len(found) > 20
    assert len(set(texts)) == len(texts)
    assert function_of(source).source.text not in texts
    assert not any("x - 1" in text for text in texts)  # not inside an f-string


CUT = [
    ("logging", "logger.info(x, 1 + 2)"),
    ("logging", "self.log_batch_result_stats(x, y > 0)"),
    ("metrics", "self.metrics_collector.observe(x + 1)"),
    ("metrics", "self.stats.tokens += 1"),
    ("metrics", "if self.enable_metrics:\n  x.send(y)"),
    ("words-only", "if x > 1:\n  logger.info('big')"),
    ("assertion", "assert x > 1"),
    ("message", "raise ValueError('a', 1 + 2)"),
    ("type-checking", "if TYPE_CHECKING:\n  x.call(1)"),
    ("dead-code", "return\nx.call(1)"),
    ("only-waits", "z = x.to(y, non_blocking=True)"),
    ("only-waits", "if x:\n  y.stream.wait_stream(z)"),
    ("ends-anyway", "for z in x:\n  if z:\n    continue"),
]


@pytest.mark.parametrize(("rule", "body"), CUT)
def test_rule(rule: str, body: str) -> None:
    found = mutants(method(body))
    assert found
    assert rule in {mutant.cut_by for mutant in found}


def test_what_is_for_humans_is_cut() -> None:
    assert {m.cut_by for m in mutants(method("return x + 1", "__repr__"))} == {"for-humans"}
    assert {rule.name for rule in RULES} == {case[0] for case in CUT} | {"for-humans"}


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError(x)",  # itself: a check that is gone
        "x.to(y, non_blocking=False)",
        "for z in x:\n  if z:\n    continue\n  y.call()",
        "if x > 1:\n  logger.info('big')\n  x.call()",
        "self.state = 1",
        "self.dynamic_chunk_profiler.run()",
    ],
)
def test_what_can_be_seen_is_not_cut(body: str) -> None:
    assert any(mutant.cut_by == "" for mutant in mutants(method(body)))
