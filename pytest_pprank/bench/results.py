"""The JSON file of a bench: what was measured, with what, so that a later run can go on.

    {
      "schema": 1,
      "key": {"pytest_pprank": ..., "sglang": ..., "torch": ..., "python": ..., "options": {...}},
      "baseline": null or {"green": true, "tests": 34, "seconds": 40.1, "red": [], "reason": "",
                   "probed": whether calls of the reverted functions were noted in that run},
      "reach": null or {"tests_of": {function: [test ids]}, "about": {test id: words},
                "seconds_of": {test id: seconds}, "topologies": {test id: words}},
      "green_on_sim": [test ids that were run there without a revert, too],
      "results": {revert id: {"status": "caught" | "missed" | "hung" | "does not apply" |
                  "could not run", "digest": of the revert's content, "title", "targets", "seconds",
                  "test", "seen_by", "verdict", "message", "text", "others": [test ids],
                  "names_function", "names_request", "reached", "reason", "tests",
                  "device": where another one than the bench's has seen it}}
    }

The key holds versions and a fingerprint of the files of both packages, for they may be checkouts.
With another key nothing counts any more, except which test has seen which bug: it comes first.
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
    """All that is known; `seen_before` is by revert id, from an earlier bench."""

    key: dict[str, Any]
    baseline: Baseline | None = None
    reach: Reach | None = None
    results: dict[str, Result] = field(default_factory=dict)
    seen_before: dict[str, str] = field(default_factory=dict)
    green_on_sim: set[str] = field(default_factory=set)

    def done(self, case: Case) -> bool:
        """Say whether this revert, as it is now, has a result that a new run would repeat."""
        result = self.results.get(case.id)
        return (
            result is not None and result.digest == case.digest and result.status != Status.FAILED
        )

    def save(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        values = {
            "schema": SCHEMA,
            "key": self.key,
            "baseline": None if self.baseline is None else asdict(self.baseline),
            "reach": None if self.reach is None else asdict(self.reach),
            "green_on_sim": sorted(self.green_on_sim),
            "results": {name: asdict(result) for name, result in sorted(self.results.items())},
        }
        beside = file.with_name(f"{file.name}.new")
        beside.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        os.replace(beside, file)


def load(file: Path, key: dict[str, Any], *, fresh: bool) -> Bench:
    """Return the bench of `file` as far as it was measured with `key`; an empty one if `fresh`.

    Raises UsageError for a file that is something else.
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
    """Return what the results depend on, beside the reverts."""
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
    """Fingerprint by contents: few files. This package's bench itself does not count."""
    here = Path(__file__).parent
    files = (file for file in sorted(root.rglob("*.py")) if here not in file.parents)
    return _digest(part for f in files for part in (str(f.relative_to(root)), f.read_bytes()))


def _stamps(root: Path) -> str:
    """Fingerprint by size and time: SGLang has 3000 files."""
    stats = ((file, file.stat()) for file in sorted(root.rglob("*.py")))
    return _digest(f"{f.relative_to(root)} {s.st_size} {s.st_mtime_ns}" for f, s in stats)


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]
