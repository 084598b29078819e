"""Places of SGLang: found in source files, and missed if gone, renamed or with other parameters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.bench.seams import inspect_all
from pytest_pprank.checks import SANITIZERS
from pytest_pprank.report.off import expected_off, needed_by
from pytest_pprank.sglang.events.places import HOOKS, PLACES, Methods, Shape, passes
from pytest_pprank.sglang.events.shapes import SourceInspector, find_shape
from pytest_pprank.sglang.static.installed import Installed


def whole(shapes: Iterator[Shape]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the source of all members of some shapes, by module, class and name."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for shape in shapes:
        for methods in shape.methods:
            members = found.setdefault(methods.module, {}).setdefault(methods.owner, {})
            for name in methods.names:
                line = source_of(methods, name)
                members[name] = max(line, members.get(name, ""), key=len)
    return found


def source_of(methods: Methods, name: str) -> str:
    if name == "msgspec":
        return "import msgspec"
    count = max(methods.takes, default=0) + 1
    named = [methods.takes.get(place, (f"other{place}",))[0] for place in range(1, count)]
    own = ["self"] if methods.owner else []
    return f"def {name}({', '.join([*own, *named])}): ..."


def write(root: Path, modules: dict[str, dict[str, dict[str, str]]]) -> None:
    for module, classes in modules.items():
        file = root.parent.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for owner, members in sorted(classes.items()):
            indent = "    " if owner else ""
            lines += [f"class {owner}:"] if owner else []
            lines += [f"{indent}{line}" for line in members.values()]
        file.write_text("\n".join(lines) + "\n")
    (root / "__init__.py").write_text("")
    (root / "_version.py").write_text("__version__ = version = '9.9'\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create an SGLang that has the first shape of all places, and nothing else."""
    package = tmp_path / "sglang"
    write(package, whole(place.shapes[0] for place in PLACES.values()))
    return package


class Cut(NamedTuple):
    """A member of a class or module, and the places whose first shape has it."""

    module: str
    owner: str
    name: str
    places: tuple[str, ...]
    takes: bool


def cuts() -> Iterator[Cut]:
    seen: dict[tuple[str, str, str], set[str]] = {}
    takes = set()
    for place in PLACES.values():
        for methods in place.shapes[0].methods:
            marks = {it for shape in place.shapes for other in shape.without for it in other.names}
            for name in set(methods.names) - marks:  # without a mark it is the other shape
                key = (methods.module, methods.owner, name)
                seen.setdefault(key, set()).add(place.name)
                takes |= {key} if methods.takes else set()
    for key, places in seen.items():
        yield Cut(*key, tuple(sorted(places)), key in takes)


ALL = sorted(cuts())
IDS = [f"{cut.owner or cut.module.rpartition('.')[2]}.{cut.name}" for cut in ALL]


def missing(root: Path) -> dict[str, tuple[str, ...]]:
    return {row.name: row.lacks for row in inspect_all(SourceInspector(root)) if row.lacks}


def edit(root: Path, cut: Cut, new: str) -> None:
    file = root.parent.joinpath(*cut.module.split(".")).with_suffix(".py")
    inside, lines = "", []
    for line in file.read_text().splitlines():
        inside = line[6:-1] if line.startswith("class ") else inside if line[:1] == " " else ""
        begins = (f"def {cut.name}(", f"import {cut.name}")
        hit = line.strip().startswith(begins) and inside == cut.owner
        lines.append(f"{line[: len(line) - len(line.lstrip())]}{new}" if hit else line)
    file.write_text("\n".join(lines) + "\n")


def test_all_is_there(root: Path) -> None:
    assert missing(root) == {}


@pytest.mark.parametrize("new", ["pass", "def renamed(self): ..."], ids=["gone", "renamed"])
@pytest.mark.parametrize("cut", ALL, ids=IDS)
def test_what_is_gone_is_missed_where_it_is_needed(root: Path, cut: Cut, new: str) -> None:
    edit(root, cut, new)
    assert tuple(sorted(missing(root))) == cut.places
    label = f"{cut.owner or cut.module}.{cut.name}"
    assert all(label in lacks for lacks in missing(root).values())


@pytest.mark.parametrize("cut", [cut for cut in ALL if cut.takes], ids=lambda cut: cut.name)
def test_another_signature_is_missed(root: Path, cut: Cut) -> None:
    edit(root, cut, f"def {cut.name}(self, *, strange): ...")
    assert set(missing(root)) <= set(cut.places)
    lacks = next(iter(missing(root).values()))
    assert lacks[0].startswith("parameter ")
    assert lacks[0].endswith(f".{cut.name}(self, strange)")


@pytest.mark.parametrize("place", [it for it in PLACES.values() if len(it.shapes) > 1], ids=str)
def test_each_known_shape_is_taken(tmp_path: Path, place: object) -> None:
    for number, shape in enumerate(place.shapes):  # type: ignore[attr-defined]
        package = tmp_path / str(number) / "sglang"
        write(package, whole(iter([shape])))
        assert find_shape(place, SourceInspector(package)).shape is shape  # type: ignore[arg-type]


class TestOff:
    def test_a_check_whose_hook_is_gone_is_off_and_no_other(self, root: Path) -> None:
        cut = next(cut for cut in ALL if cut.name == "get_next_batch_to_run")
        edit(root, cut, "pass")
        off = expected_off(Installed("9.9", root), [row.name for row in SANITIZERS])
        assert list(off) == ["liveness"]
        assert off["liveness"] == f"SGLang 9.9 ({root}) has no Scheduler.get_next_batch_to_run"

    def test_one_that_only_some_roles_pass_is_off_for_these(self, root: Path) -> None:
        cut = next(cut for cut in ALL if cut.name == "get_rids")
        edit(root, cut, "pass")
        off = expected_off(Installed("9.9", root), ["consensus", "kv"])
        assert list(off) == ["consensus"]
        assert off["consensus"].endswith("SchedulerPPMixin.get_rids (off for prefill and decode)")

    def test_every_hook_of_a_check_is_a_place(self) -> None:
        for row in SANITIZERS:
            assert {hook for hook in row.hooks if hook not in PLACES} == set()

    def test_every_place_is_needed_by_something(self) -> None:
        assert [name for name in PLACES if not needed_by(name)] == []

    def test_roles(self) -> None:
        assert passes("forward", "pp")
        assert not passes("consensus_local", "pp")
        assert passes("consensus_local", "decode")
        assert not passes("handshake", "decode")
        assert passes("p2p_send", "pp")  # not a place of SGLang


class TestCommand:
    @pytest.fixture(autouse=True)
    def _on_path(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(root.parent)
        monkeypatch.delitem(sys.modules, "sglang", raising=False)

    def test_nothing_missing(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["seams"]) == 0
        first, *_ = capsys.readouterr().out.splitlines()
        assert first == f"SGLang 9.9 ({root}): {len(PLACES)} places, nothing missing"

    def test_what_is_missing_comes_first_with_what_is_off(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        edit(root, next(cut for cut in ALL if cut.name == "inc_lock_ref"), "pass")
        assert main(["seams"]) == 1
        out = capsys.readouterr().out
        assert f"{len(PLACES)} places, 1 missing\n\nMISSING event lock: " in out
        assert "SGLang has no BasePrefixCache.inc_lock_ref" in out
        assert "off: sanitizer kv, observe.on('lock')" in out

    def test_json(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["seams", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["sglang"]["root"] == str(root)
        assert [place["name"] for place in found["places"]] == list(PLACES)
        assert {place["kind"] for place in found["places"]} == {"event", "seam"}
        forward = next(place for place in found["places"] if place["name"] == "forward")
        assert forward["where"] == ["sglang.srt.model_executor.model_runner: ModelRunner: forward"]

    def test_no_sglang(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        monkeypatch.setattr(sys, "path", [str(empty)])
        assert main(["seams"]) == 2
        assert "no SGLang is installed" in capsys.readouterr().err


def test_hooks_and_needs_have_names_of_their_own() -> None:
    assert len(PLACES) == len({place.name for place in PLACES.values()})
    assert len(HOOKS) < len(PLACES)
