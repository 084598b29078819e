"""Names and YAML files given to --pprank-revert."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.reverts import Edit, Patch, resolve
from pytest_pprank.sglang.reverts.match import Shape, Text

GOOD = """\
id: toy-1
kind: synthetic
pr: 42
title: Do it right
url: https://example.org/42
applies_to: [1.0]
patches:
- target: toy.mod.f
  preamble: import os
  edits:
  - match: |
      if x:
    replacement: ''
  - match: return x
    append: pass
"""


@pytest.mark.parametrize("spec", ["26883", "pr-26883", "PR26883", "#26883", " pr 26883 "])
def test_registered_names(spec: str) -> None:
    found = resolve(spec)
    assert (found.id, found.pr) == ("26883", 26883)
    assert found.describe() == (
        "26883: [PP][Bugfix] Handle input_ids assignment in prepare_for_extend (PR 26883)"
    )
    assert pickle.loads(pickle.dumps(found)) == found


def test_unknown_name() -> None:
    with pytest.raises(UsageError) as info:
        resolve("2688")
    message = str(info.value)
    assert message.startswith("--pprank-revert: unknown revert '2688' (did you mean '26883'?)")
    assert "known: 26883, " in message
    assert "YAML file" in message


def test_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(GOOD)
    found = resolve(str(path))
    assert found.describe() == "toy-1: Do it right (PR 42)"
    (patch,) = found.patches
    assert (patch.targets, patch.preamble) == (("toy.mod.f",), "import os")
    assert patch.edits == (
        Edit(Text("if x:\n"), "replace", ""),
        Edit(Text("return x"), "append", "pass"),
    )


@pytest.mark.parametrize(
    ("line", "versions"),
    [
        ("applies_to: [1.0]", "1.0"),
        ("applies_to:\n- 0.5.20\n- 0.5.21", "0.5.20, 0.5.21"),
        ("versions: 0.5.20 and later\napplies_to: [1.0]", "0.5.20 and later"),
        ("", ""),
    ],
)
def test_versions_that_it_is_made_for(tmp_path: Path, line: str, versions: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(GOOD.replace("applies_to: [1.0]", line))
    assert resolve(str(path)).versions == versions


def test_bare_form_of_sglangs_patcher(tmp_path: Path) -> None:
    path = tmp_path / "bare.yml"
    path.write_text(GOOD[GOOD.index("patches") :])
    assert resolve(str(path)).describe() == "bare"


@pytest.mark.parametrize(
    ("actions", "edit"),
    [
        ("", Edit(Text("# only"))),
        ("append: ''", Edit(Text("# only"))),
        ("replacement: ''\n    prepend: ' '", Edit(Text("# only"))),
        ("replacement: ' '\n    prepend: pass", Edit(Text("# only"), "prepend", "pass")),
        ("append: '# more'", Edit(Text("# only"), "append", "# more")),
    ],
)
def test_blank_texts_count_as_none_as_for_sglangs_patcher(
    tmp_path: Path, actions: str, edit: Edit
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"patches:\n- target: a.b\n  edits:\n  - match: '# only'\n    {actions}\n")
    assert resolve(str(path)).patches == (Patch(("a.b",), (edit,)),)


def test_preamble_without_edits(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("patches:\n- {target: a.b, preamble: pass, edits: []}\n")
    assert resolve(str(path)).patches == (Patch(("a.b",), (), "pass"),)
    path.write_text("patches:\n- {target: a.b, edits: []}\n")
    with pytest.raises(UsageError, match="edits' is to be a list with at least one item"):
        resolve(str(path))


BAD = {
    "malformed": ("kind: synthetic", "kind: [", "malformed YAML: line 4: "),
    "no_patches_key": ("patches:", "patchs:", "'patches' is missing; keys there: id, kind"),
    "unknown_in_patch": ("preamble:", "pramble:", r"unknown key 'pramble' in patches\[0\] \(did"),
    "unknown_in_edit": ("append:", "apend:", r"'apend' in patches\[0\].edits\[1\] .* allowed: ma"),
    "no_target": ("target: toy.mod.f\n  ", "", r"'target' is missing in patches\[0\]"),
    "no_match": ("match: return x\n    ", "", r"'match' is missing in patches\[0\].edits\[1\]"),
    "two_actions": ("''\n", "x\n    prepend: pass\n", "at most one .* and prepend"),
    "blank_match": ("match: return x", "match: ' '", r"edits\[1\].match is empty"),
    "number_as_text": ("append: pass", "append: 1", r"edits\[1\].append is to be text, not int 1"),
    "target_without_module": ("target: toy.mod.f", "target: f", "dotted name of a function"),
    "releases": ("target: toy", "releases: new\n  target: toy", "releases is a version specifier"),
    "pr": ("pr: 42", "pr: many", "'pr' is the number of a pull request, not 'many'"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=message) as info:
        resolve(str(path))
    assert str(info.value).startswith(f"--pprank-revert {path}: ")


def test_match_by_shape_and_targets_of_several_versions(tmp_path: Path) -> None:
    path = tmp_path / "shape.yaml"
    path.write_text(
        "patches:\n"
        "- target: [toy.old.f, toy.new.g]\n"
        "  edits:\n"
        "  - match: {kind: If, mentions: [a, b], assigns: c, part: test}\n"
        "    replacement: 'True'\n"
        "- target: toy.mod.h\n"
        "  preamble: pass\n"
    )
    shape = Shape("If", ("a", "b"), ("c",), "test")
    assert resolve(str(path)).patches == (
        Patch(("toy.old.f", "toy.new.g"), (Edit(shape, "replace", "True"),)),
        Patch(("toy.mod.h",), (), "pass"),
    )


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ("{kind: Iff, mentions: [a]}", r"edits\[0\].match.kind .* not 'Iff' \(did you mean 'If'"),
        ("{kind: Name, mentions: [a]}", "a statement of Python's ast, not 'Name'"),
        ("{kind: If}", r"'mentions' is missing in patches\[0\].edits\[0\].match"),
        ("{kind: If, mentions: []}", "mentions is to be text, not empty"),
        ("{kind: If, mentions: [1]}", r"mentions\[0\] is to be text, not int 1"),
        ("{kind: If, mentions: [a], part: targets}", "If has no 'targets'; allowed: test, body"),
        ("{kind: If, mentions: [a], asigns: b}", r"'asigns' .* \(did you mean 'assigns'"),
    ],
)
def test_bad_shapes_are_refused(tmp_path: Path, match: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"patches:\n- target: a.b\n  edits:\n  - match: {match}\n    replacement: ''\n")
    with pytest.raises(UsageError, match=message):
        resolve(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is to be a mapping of keys to values, not empty"),
        ("- a\n", "the file is to be a mapping .*, not list"),
        ("patches: []\n", "'patches' is to be a list with at least one item, not empty"),
        ("patches:\n- target: a.b\n  edits:\n", "edits' is to be a list .*, not empty"),
        ("\x00", "malformed YAML"),
        (b"\xff\xfe\xff", "not a text file in UTF-8"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        resolve(str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the file: No such file"):
        resolve(str(tmp_path / "gone.yaml"))
    with pytest.raises(UsageError, match="cannot read the file: Is a directory"):
        resolve(str(tmp_path))
