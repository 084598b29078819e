"""The JSON file of a bench: its results and their conditions, so that a later run can continue.

    {
      "schema": 1,
      "key": {"pytest_pprank": ..., "sglang": ..., "torch": ..., "python": ..., "options": {...}},
      "baseline": null or {"green": true, "tests": 34, "seconds": 40.1, "red": [], "reason": "",
                   "probed": whether calls of the reverted functions were recorded in that run},
      "reach": null or {"tests_of": {function: [test ids]}, "about": {test id: words},
                "seconds_of": {test id: seconds}, "topologies": {test id: words}},
      "green_on_sim": [test ids that have passed there without a revert],
      "mutants": {id: what `mutate` knows of a mutant; empty in a file of `regressions`},
      "results": {revert id: {"status": "caught" | "missed" | "hung" | "does not apply" |
                  "could not run", "digest": of the revert's content, "title", "targets", "seconds",
                  "test", "seen_by", "verdict", "message", "text", "others": [test ids],
                  "names_function", "names_request", "reached", "reason", "tests",
                  "device": the one that detected it, if not the bench's own}}
    }

The key contains versions and a fingerprint of the files of both packages, which may be checkouts.
If the key differs, all results are dropped, except which test detected which bug: it runs first.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest_pprank
from pytest_pprank._version import __version__
from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.judgement import Baseline, Result, Status
from pytest_pprank.bench.order import Reach
from pytest_pprank.bench.runs import Options
from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.static.release import sglang_version

SCHEMA = 1


@dataclass
class Bench:
    """The contents of the file; `seen_before`: by revert id, a test of an earlier bench."""

    key: dict[str, Any]
    baseline: Baseline | None = None
    reach: Reach | None = None
    results: dict[str, Result] = field(default_factory=dict)
    seen_before: dict[str, str] = field(default_factory=dict)
    green_on_sim: set[str] = field(default_factory=set)
    mutants: dict[str, dict[str, object]] = field(default_factory=dict)

    def done(self, case: Case) -> bool:
        """Return whether this revert, with its current content, has a result that can be reused."""
        result = self.results.get(case.id)
        return (
            result is not None and result.digest == case.digest and result.status != Status.FAILED
        )

    def save(self, file: Path) -> None:
        """Write the file atomically."""
        values = {
            "schema": SCHEMA,
            "key": self.key,
            "baseline": None if self.baseline is None else asdict(self.baseline),
            "reach": None if self.reach is None else asdict(self.reach),
            "green_on_sim": sorted(self.green_on_sim),
            "mutants": self.mutants,
            "results": {name: asdict(result) for name, result in sorted(self.results.items())},
        }
        beside = file.with_name(f"{file.name}.new")
        beside.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        os.replace(beside, file)


def load(file: Path, key: dict[str, Any], *, fresh: bool) -> Bench:
    """Return the bench in `file` as far as it was measured with `key`; without results if `fresh`.

    Raises UsageError for a file with other content.
    """
    if not file.is_file():
        return Bench(key)
    try:
        values = json.loads(file.read_text("utf-8"))
        if values["schema"] != SCHEMA:
            return Bench(key)
        results = {name: _result(each) for name, each in values["results"].items()}
        seen = {name: result.test for name, result in results.items() if result.test}
        if fresh or values["key"] != key:
            return Bench(key, seen_before=seen)
        baseline, reach = values["baseline"], values["reach"]
        return Bench(
            key,
            None if baseline is None else Baseline(**baseline),
            None if reach is None else Reach(**reach),
            results,
            seen,
            set(values.get("green_on_sim", ())),
            values.get("mutants", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--json {file}: not a file of this command ({type(error).__name__}: {error}); "
            "give another one, or remove it"
        ) from None


def _result(values: dict[str, Any]) -> Result:
    lists = {name: tuple(values[name]) for name in ("others", "targets")}
    return Result(**{**values, **lists, "status": Status(values["status"])})


def make_key(options: Options, package_root: Path) -> dict[str, Any]:
    """Return what the results depend on, in addition to the reverts."""
    own = Path(pytest_pprank.__file__).parent
    return {
        "pytest_pprank": f"{__version__} {_contents(own)}",
        "sglang": f"{sglang_version()} {_stamps(package_root)}",
        "torch": _version("torch"),
        "python": platform.python_version(),
        "options": json.loads(json.dumps(asdict(options))),  # lists, not tuples, as in the file
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _contents(root: Path) -> str:
    """Return a fingerprint of the contents of few files; without what only judges their runs."""
    judges = {Path(__file__).parent, root / "mutants"}
    files = (file for file in sorted(root.rglob("*.py")) if not judges & {*file.parents})
    return _digest(part for f in files for part in (str(f.relative_to(root)), f.read_bytes()))


def _stamps(root: Path) -> str:
    """Return a fingerprint of sizes and times: SGLang has 3000 files."""
    stats = ((file, file.stat()) for file in sorted(root.rglob("*.py")))
    return _digest(f"{f.relative_to(root)} {s.st_size} {s.st_mtime_ns}" for f, s in stats)


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]
