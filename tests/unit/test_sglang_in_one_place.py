"""Only `sglang/` uses SGLang's names, and only `sglang/compat` what differs between releases."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_pprank

PACKAGE = Path(pytest_pprank.__file__).parent
WORDS = frozenset(
    {
        "bootstrap_room", "chunked_req", "disagg_kv_sender", "extend_lens", "finished_reason",
        "forward_mode", "k_buffer", "last_batch", "mbs", "metadata_buffer_index",
        "origin_input_ids", "out_cache_loc", "output_ids", "pp_proxy_tensors", "prefix_indices",
        "req_pool_idx", "req_pool_indices", "req_to_token", "req_to_token_pool", "running_batch",
        "running_mbs", "sampling_params", "token_to_kv_pool", "token_to_kv_pool_allocator",
        "tree_cache", "v_buffer", "waiting_queue",
    }
)  # fmt: skip
"""Attributes of SGLang's objects."""
FIELDS_IN_WORDS = {"out_cache_loc", "req_pool_indices"}
"""Those that findings name as text: keys of `events.types.ForwardEntry.sizes`."""

OUTSIDE = [
    *sorted((PACKAGE / "checks").glob("*.py")),
    *sorted((PACKAGE / "faults").glob("*.py")),
    *sorted((PACKAGE / "report").glob("*.py")),
    *sorted((PACKAGE / "controller").glob("*.py")),
    PACKAGE / "assertions.py",
    PACKAGE / "fixtures.py",
]
OF_PYTEST = {
    "addsection",
    "context",
    "longrepr",
    "module",
    "reprcrash",
    "user_properties",
    "wasxfail",
    "workerinput",
}
"""Attributes that not all of pytest's reports, items and configs have."""

NOT_OF_SGLANG = {
    ("events/hooks.py", "__isabstractmethod__"),  # Python's functions
    ("events/shapes.py", "__func__"),
    ("static/installed.py", "__file__"),  # Python's modules
    ("batches/materialize.py", "sim"),  # torch
    ("platform/__init__.py", "name"),  # importlib's context
    ("model/loaded.py", "disable_progress_bar"),  # transformers
    ("model/reference.py", "keys"),
    ("model/reference.py", "layers"),
    ("platform/sim_kernels.py", "is_of_sim"),  # ours
    ("static/release.py", "targets"),  # Python's syntax trees, which reverts/ reads, too
    ("events/sites.py", "co_qualname"),  # Python's code objects
    ("stage/leftovers.py", "__dict__"),  # and objects
}


def _asked(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of names queried by ``hasattr``, or by ``getattr`` with a default."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        defaults = {"hasattr": 2, "getattr": 3}
        name = node.args[1] if len(node.args) > 1 else None
        asks = len(node.args) == defaults.get(node.func.id)
        if asks and isinstance(name, ast.Constant):
            yield str(name.value), node.lineno


def _named(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of each attribute, keyword and string that may be an attribute's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.Constant) and str(node.value) not in FIELDS_IN_WORDS:
            yield str(node.value), node.lineno


def test_version_rules_are_in_compat() -> None:
    folder = PACKAGE / "sglang"
    found = {
        (str(file.relative_to(folder)), name)
        for file in folder.rglob("*.py")
        if file.relative_to(folder).parts[0] not in ("compat", "reverts")
        for name, _ in _asked(ast.parse(file.read_text()))
    }
    assert sorted(found ^ NOT_OF_SGLANG) == []


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_outside_names_an_attribute_of_sglang(file: Path) -> None:
    tree = ast.parse(file.read_text())
    named = [f"line {line}: {name}" for name, line in _named(tree) if name in WORDS]
    assert named == []
    assert {name for name, _ in _asked(tree)} <= OF_PYTEST


def test_what_is_looked_for_is_there() -> None:
    """A name that SGLang's own package does not use either would guard nothing."""
    files = [*(PACKAGE / "sglang").rglob("*.py"), *(PACKAGE / "suite").rglob("*.py")]
    used = {name for file in files for name, _ in _named(ast.parse(file.read_text()))}
    assert WORDS - FIELDS_IN_WORDS - used == set()
