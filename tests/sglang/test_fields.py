"""The field tables compared with the installed SGLang's own declarations."""

from __future__ import annotations

import ast

import pytest

from pytest_pprank.sglang.batches.fields import (
    FORWARD_BATCH,
    SCHEDULE_BATCH,
    Mirror,
    Staging,
    Table,
)
from pytest_pprank.sglang.static import release

_SEAMS = [
    ("managers/schedule_batch.py", "ScheduleBatch", SCHEDULE_BATCH),
    ("model_executor/forward_batch_info.py", "ForwardBatch", FORWARD_BATCH),
    (
        "model_executor/forward_batch_deepseek_mha_mixin.py",
        "ForwardBatchDeepSeekMHAMixin",
        FORWARD_BATCH,
    ),
]


def tensor_fields(source: str, class_name: str) -> set[str]:
    """Return the names that a class declares with a tensor in their annotation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return {
                statement.target.id
                for statement in node.body
                if isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and "Tensor" in ast.unparse(statement.annotation)
            }
    raise AssertionError(f"no class {class_name}")


@pytest.mark.parametrize(("file", "class_name", "table"), _SEAMS, ids=[s[1] for s in _SEAMS])
def test_table_knows_each_tensor_field(file: str, class_name: str, table: Table) -> None:
    root = release.package_root()
    assert root is not None
    declared = tensor_fields((root / "srt" / file).read_text(encoding="utf-8"), class_name)
    assert declared
    assert declared - set(table) == set()


@pytest.mark.parametrize("table", [SCHEDULE_BATCH, FORWARD_BATCH], ids=["schedule", "forward"])
def test_mirrors_and_staging_point_into_their_table(table: Table) -> None:
    targets = [kind.of for kind in table.values() if isinstance(kind, Mirror)]
    targets += [kind.into for kind in table.values() if isinstance(kind, Staging)]
    assert set(targets) <= set(table)


def test_a_field_that_is_not_in_the_table_would_be_seen() -> None:
    source = "class ScheduleBatch:\n    brand_new: Optional[torch.Tensor] = None\n    n: int = 0\n"
    assert tensor_fields(source, "ScheduleBatch") - set(SCHEDULE_BATCH) == {"brand_new"}
