"""One run of the stock suite in a tox environment, and its stored report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.processes import end_descendants

from matrix.product import ROOT, Product
from matrix.releases import environment

_FACTS = """
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), version("torch"), version("sglang")]))
"""


@dataclass(frozen=True)
class Run:
    """A run that has ended: its tox exited with `code`, or None if the deadline passed."""

    release: str
    device: str
    commit: str
    tree: str
    date: str
    code: int | None
    seconds: float
    python: str = ""
    torch: str = ""
    cores: int = 0


class Store:
    """Stored reports of runs of one product, so that later runs need not repeat them."""

    def __init__(self, work_dir: Path, product: Product) -> None:
        """Use the folder of the product's tree, or that of uncommitted code."""
        self.work_dir = work_dir
        self.product = product
        self.folder = work_dir / "matrix" / ("changed" if product.changed else product.tree[:12])
        self.folder.mkdir(parents=True, exist_ok=True)

    def file(self, release: str, device: str, suffix: str) -> Path:
        """Return the path of a file of a run: its .json, .xml or .log."""
        return self.folder / f"{release}-{device}.{suffix}"

    def ended(self, release: str, device: str) -> Run | None:
        """Return the last run, however it ended; None if there was none."""
        facts = self.file(release, device, "json")
        return Run(**json.loads(facts.read_text())) if facts.is_file() else None

    def finished(self, release: str, device: str) -> Run | None:
        """Return the last run if it reached the end of the suite: it need not be repeated."""
        there = self.file(release, device, "xml").is_file()
        return self.ended(release, device) if there else None

    def run(self, release: str, device: str, deadline: float) -> Run:
        """Run the suite and store its report; end it if it takes longer than `deadline`."""
        for suffix in ("json", "xml", "log"):
            self.file(release, device, suffix).unlink(missing_ok=True)
        env = environment(release)
        begin = time.time()
        with self.file(release, device, "log").open("w") as log:
            code = _tox(env, device, self.work_dir, log.fileno(), deadline)
        report = self.work_dir / env / "tmp" / "suite.xml"
        if code is not None and report.is_file() and report.stat().st_mtime >= begin:
            shutil.copy(report, self.file(release, device, "xml"))
        python, torch = self._facts(env, release)
        done = Run(
            release, device, self.product.commit, self.product.tree,
            datetime.now(timezone.utc).date().isoformat(), code, round(time.time() - begin, 1),
            python, torch, len(os.sched_getaffinity(0)),
        )  # fmt: skip
        self.file(release, device, "json").write_text(json.dumps(asdict(done), indent=1))
        return done

    def _facts(self, env: str, release: str) -> tuple[str, str]:
        python = self.work_dir / env / "bin" / "python"
        if not python.exists():
            return "", ""
        done = subprocess.run([python, "-c", _FACTS], capture_output=True, text=True, check=False)
        if done.returncode:
            return "", ""
        version, torch, sglang = json.loads(done.stdout)
        if sglang != release:
            raise SystemExit(f"matrix: {env} has SGLang {sglang}, not {release}")
        return version, torch


def _tox(env: str, device: str, work_dir: Path, out: int, deadline: float) -> int | None:
    """Run tox, end all its processes with it, and return its exit code."""
    tox = [sys.executable, "-m", "tox", "run", "--workdir", str(work_dir), "-e", env]
    process = subprocess.Popen(
        [*tox, "--", "--pprank-device", device],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(deadline)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_descendants()
        process.wait()
