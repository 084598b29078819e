"""Runs pytest on generated tests, reads its reports, and searches for what it left behind."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chaos_case import PREAMBLE, Run
from chaos_judge import Report
from processes import descendants, end_descendants, reap

_SETTLE_SECONDS = 5.0
_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Finished:
    """A finished pytest run: its reports by test, and what was found after it."""

    reports: dict[str, list[Report]]
    output: str
    seconds: float
    timed_out: bool
    leftovers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How pytest is run: grace period, timeout and the run's own deadline per test, in seconds."""

    grace: float = 2.0
    timeout: float = 60.0
    start: float = 120.0
    per_test: float = 20.0

    def command(self, world: int) -> list[str]:
        """Return the pytest command line for `world` ranks."""
        plugins = ("no:randomly", "no:cacheprovider", "chaos_recorder")
        return [
            *(sys.executable, "-m", "pytest"),
            *(word for name in plugins for word in ("-p", name)),
            *self.flags(world),
        ]

    def flags(self, world: int) -> list[str]:
        """Return the flags that affect verdicts."""
        times = (f"--pprank-grace={self.grace:g}", f"--pprank-timeout={self.timeout:g}")
        return [f"--pp-size={world}", "--pprank-device=cpu", *times]


def write_tests(folder: Path, sources: Mapping[str, list[str]]) -> None:
    """Write the test files, each with the common imports."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, blocks in sources.items():
        (folder / name).write_text(PREAMBLE + "\n" + "\n\n".join(blocks))


def run_pytest(folder: Path, run: Run, settings: Settings) -> Finished:
    """Run the tests of `run` in `folder`, and wait until nothing changes any more."""
    write_tests(folder, {n: [c.source for c in cases] for n, cases in run.files.items()})
    out, reports = folder / "output.txt", folder / "reports.jsonl"
    shared = _names(_SHARED_MEMORY)
    # a short path: unix sockets are created below it
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as tmp:
        environment = {
            **os.environ,
            "TMPDIR": tmp,
            "PPRANK_LEASE_DIR": tmp,  # own leases: no waiting, and one that stays is noticed
            "PYTHONPATH": _path_with(Path(__file__).parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CHAOS_REPORTS": str(reports),
        }
        begin = time.monotonic()
        with out.open("wb") as file:
            process = subprocess.Popen(
                [*settings.command(run.world), *run.files],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            timed_out = _wait(process, settings.start + settings.per_test * len(run.cases))
        finished = Finished(
            _read(reports), out.read_text(errors="replace"), time.monotonic() - begin, timed_out
        )
        finished.leftovers = _leftovers(Path(tmp), folder, shared)
    return finished


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def _path_with(folder: Path) -> str:
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder))))


def _read(path: Path) -> dict[str, list[Report]]:
    reports: dict[str, list[Report]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        report = json.loads(line)
        reports.setdefault(report["name"], []).append(report)
    return reports


# --- leftovers ----------------------------------------------------------------------------------


def _leftovers(tmp: Path, folder: Path, shared: set[str]) -> list[str]:
    """Describe what a run has left behind; end the processes among it."""
    found = [f"process {text}" for text in sorted(_settled(_processes))]
    end_descendants()
    ours = {f"pytest-of-{getpass.getuser()}"}
    found += [f"in TMPDIR: {name}" for name in _settled(lambda: _names(tmp) - ours)]
    known = ("test_", "flag-", "pytest.ini", "output.txt", "reports.jsonl")
    found += [f"in the folder: {n}" for n in sorted(_names(folder)) if not n.startswith(known)]
    unused = {n for n in _names(_SHARED_MEMORY) - shared if not _in_use(n)}
    # only of what exists now: what appears later belongs to another run
    mine = _settled(lambda: {n for n in unused & _names(_SHARED_MEMORY) if not _in_use(n)})
    return found + [f"in /dev/shm: {name}" for name in sorted(mine)]


def _processes() -> set[str]:
    return {f"{pid}: {text}" for pid, text in descendants().items()}


def _settled(look: Callable[[], set[str]]) -> set[str]:
    """Return what `look` still finds after a while."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        reap()
        time.sleep(0.05)
    return found


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _in_use(name: str) -> bool:
    """Return whether a living process maps a file of /dev/shm: then it belongs to another run.

    Compares inodes: a semaphore is created under another name than the one it is known by.
    """
    try:
        inode = str((_SHARED_MEMORY / name).stat().st_ino)
    except OSError:
        return True  # gone by now
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue  # gone by now
        if any(f"{_SHARED_MEMORY}/" in line and line.split()[4] == inode for line in lines):
            return True
    return False
