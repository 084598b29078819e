"""Reads a revert from a YAML file, in the format of SGLang's source patcher with a header.

    id: h2d-1                # default: the name of the file
    pr: 26883                # pr, title, url: shown in the run's header and reports
    versions: [0.5.20, 0.5.21]    # or a text, or applies_to: shown if the revert does not fit
    patches:
    - target: sglang.srt.module.Class.function    # or a list: its names in other versions
      preamble: import os    # optional: code for the start of the function
      releases: '>=0.5.22'   # optional: skip the patch for other releases
      edits:
      - match: |
          statements, or a part of one
        replacement: ''      # or prepend: ..., or append: ...; none (or blank): remove the match
      - match:               # a match by shape, see `Shape`
          kind: If
          mentions: [name]
          assigns: [name]    # optional, as is `part`
        replacement: ''
      - match:               # one exact place, see `Place`; written by `mutate`
          at: [row, column, end row, end column]
          text: what is there
          whole: true        # optional: it is whole statements
        replacement: pass

Other top-level keys (notes, area) are for readers and ignored.
"""

from __future__ import annotations

import ast
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from pytest_pprank.errors import UsageError, did_you_mean

from .match import Shape, Text
from .model import Action, Edit, Patch, Revert
from .place import Place

_ACTIONS: dict[str, Action] = {
    "replacement": "replace",
    "prepend": "prepend",
    "append": "append",
}


class _Invalid(Exception):
    """What is wrong in the file; `load` adds the file's name."""


def load(path: Path) -> Revert:
    """Return the revert of a file. Raises `UsageError` that says what is wrong and where."""
    try:
        return _revert(_parse(_read(path)), path)
    except _Invalid as wrong:
        raise UsageError(f"--pprank-revert {path}: {wrong}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise _Invalid(f"cannot read the file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _Invalid("not a text file in UTF-8") from None


def _parse(text: str) -> object:
    try:
        import yaml  # here: few runs need it
    except ImportError:
        raise _Invalid("reading it needs PyYAML, which is not installed") from None
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise _Invalid(f"malformed YAML: {line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise _Invalid(f"malformed YAML: {error}") from None


def _revert(data: object, path: Path) -> Revert:
    head = _mapping(data, "the file")
    if "patches" not in head:
        raise _Invalid(f"'patches' is missing; keys there: {', '.join(map(str, head)) or 'none'}")
    pr = head.get("pr")
    if pr is not None and type(pr) is not int:
        raise _Invalid(f"'pr' is the number of a pull request, not {pr!r}")
    return Revert(
        id=str(head.get("id") or path.stem),
        patches=tuple(
            _patch(item, f"patches[{index}]")
            for index, item in enumerate(_items(head["patches"], "patches"))
        ),
        pr=pr,
        title=str(head.get("title") or ""),
        url=str(head.get("url") or ""),
        versions=_versions(head.get("versions") or head.get("applies_to")),
    )


def _versions(data: object) -> str:
    return ", ".join(map(str, data)) if isinstance(data, list) else str(data or "")


def _patch(data: object, where: str) -> Patch:
    patch = _mapping(data, where)
    preamble = _text(patch.get("preamble") or "", f"{where}.preamble")
    # a preamble without edits is allowed
    alone = bool(preamble) and patch.get("edits", []) == []
    keys = ("target",) if alone else ("target", "edits")
    _demand_keys(patch, where, required=keys, optional=("edits", "preamble", "releases"))
    targets = _names(patch["target"], f"{where}.target")
    for target in targets:
        if not all(part.isidentifier() for part in target.split(".")) or "." not in target:
            raise _Invalid(f"{where}.target is the dotted name of a function, not {target!r}")
    edits = tuple(
        _edit(item, f"{where}.edits[{index}]")
        for index, item in enumerate(() if alone else _items(patch["edits"], f"{where}.edits"))
    )
    return Patch(targets, edits, preamble, _releases(patch.get("releases", ""), where))


def _releases(given: object, where: str) -> str:
    try:
        SpecifierSet(str(given))
    except InvalidSpecifier:
        example = "such as '>=0.5.22' or '>=0.5.17,<0.5.22'"
        raise _Invalid(
            f"{where}.releases is a version specifier {example}, not {given!r}"
        ) from None
    return str(given)


def _edit(data: object, where: str) -> Edit:
    edit = _mapping(data, where)
    _demand_keys(edit, where, required=("match",), optional=tuple(_ACTIONS))
    match = _match(edit["match"], f"{where}.match")
    texts = {key: _text(edit[key], f"{where}.{key}") for key in _ACTIONS if key in edit}
    given = [key for key, text in texts.items() if text.strip()]
    if len(given) > 1:
        got = " and ".join(given)
        raise _Invalid(f"{where} takes at most one of {', '.join(_ACTIONS)}, got {got}")
    action = given[0] if given else "replacement"  # SGLang also treats a blank text as none
    return Edit(match, _ACTIONS[action], texts.get(action, ""))


def _match(data: object, where: str) -> Text | Shape | Place:
    if isinstance(data, dict):
        return _place(data, where) if "at" in data else _shape(data, where)
    text = _text(data, where)
    if not text.strip():
        raise _Invalid(f"{where} is empty")
    return Text(text)


def _shape(data: dict[object, object], where: str) -> Shape:
    _demand_keys(data, where, required=("kind", "mentions"), optional=("assigns", "part"))
    kind = _text(data["kind"], f"{where}.kind")
    node = getattr(ast, kind, None)
    if not (isinstance(node, type) and issubclass(node, ast.stmt)):
        kinds = [known.__name__ for known in ast.stmt.__subclasses__()]
        near = did_you_mean(kind, kinds)
        raise _Invalid(f"{where}.kind is a statement of Python's ast, not {kind!r}{near}")
    part = _text(data.get("part") or "", f"{where}.part")
    if part and part not in node._fields:
        fields = ", ".join(node._fields)
        raise _Invalid(f"{where}.part: {kind} has no {part!r}; allowed: {fields}")
    assigns = _names(data["assigns"], f"{where}.assigns") if "assigns" in data else ()
    return Shape(kind, _names(data["mentions"], f"{where}.mentions"), assigns, part)


def _place(data: dict[object, object], where: str) -> Place:
    _demand_keys(data, where, required=("at", "text"), optional=("whole",))
    at, whole = data["at"], data.get("whole", False)
    if not (isinstance(at, list) and len(at) == 4 and all(type(n) is int and n >= 0 for n in at)):
        raise _Invalid(f"{where}.at is [row, column, end row, end column], each from 0, not {at!r}")
    if not isinstance(whole, bool):
        raise _Invalid(f"{where}.whole is true or false, not {whole!r}")
    return Place((at[0], at[1]), (at[2], at[3]), _text(data["text"], f"{where}.text"), whole)


def _names(data: object, where: str) -> tuple[str, ...]:
    """Return the texts in `data`, which is one text or a list of texts."""
    if isinstance(data, list) and data:
        return tuple(_text(item, f"{where}[{index}]") for index, item in enumerate(data))
    return (_text(data, where),)


def _demand_keys(
    data: dict[object, object], where: str, *, required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    allowed = tuple(dict.fromkeys((*required, *optional)))
    for key in data:
        if key not in allowed:
            near = did_you_mean(str(key), allowed)
            raise _Invalid(f"unknown key {key!r} in {where}{near}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in data:
            raise _Invalid(f"{key!r} is missing in {where}")


def _mapping(data: object, where: str) -> dict[object, object]:
    if not isinstance(data, dict):
        raise _Invalid(f"{where} is to be a mapping of keys to values, not {_kind(data)}")
    return data


def _items(data: object, where: str) -> list[object]:
    if not isinstance(data, list) or not data:
        raise _Invalid(f"{where!r} is to be a list with at least one item, not {_kind(data)}")
    return data


def _text(data: object, where: str) -> str:
    if not isinstance(data, str):
        raise _Invalid(f"{where} is to be text, not {_kind(data)}")
    return data


def _kind(data: object) -> str:
    return "empty" if data in (None, [], {}) else f"{type(data).__name__} {data!r}"[:80]
