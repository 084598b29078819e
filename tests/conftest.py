"""Fixtures of all tests: `runner` runs pytest in a separate folder and process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

pytest_plugins = ["pytester"]

MARK = "PPRANK_TEST_RUN"
"""Environment variable that identifies the processes of a run, whoever adopts them."""

DEADLINE = 120

_NOT_PASSED_ON = ("PYTEST_XDIST", "PYTHONUNBUFFERED", "GITHUB_ACTIONS")
"""Variables that would make the tests see less, or more, than a user does."""


@dataclass
class Run:
    """A finished pytest run."""

    ret: int
    out: str

    def outcome(self, test: str) -> str:
        """Return the word after the test's id in -v output."""
        found: list[str] = re.findall(rf"::{re.escape(test)} ([A-Z]+)", self.out)
        assert found, f"{test} did not run:\n{self.out}"
        return found[0]

    def failure(self, test: str) -> str:
        """Return the text block of a failed test."""
        pattern = rf"\n_+ (?:ERROR at \w+ of )?{re.escape(test)} _+\n(.*?)(?=\n_{{5,}} |\n={{5,}} )"
        found = re.search(pattern, self.out, re.DOTALL)
        assert found, f"no failure of {test}:\n{self.out}"
        return found.group(1)

    def findings(self, test: str) -> str:
        """Return the sanitizers' part in the block of a failed test, and all after it."""
        _, head, rest = self.failure(test).partition("- sanitizers -")
        assert head, f"no finding in {test}:\n{self.out}"
        return rest

    def counts(self) -> dict[str, int]:
        """Return the counts in the last line."""
        last = [line for line in self.out.splitlines() if re.search(r" in \d+\.\d+s", line)][-1]
        return {word: int(n) for n, word in re.findall(r"(\d+) ([a-z]+)", last)}


class Runner:
    """Starts pytest runs in a folder of their own; all their processes carry a mark."""

    def __init__(self, folder: Path, deadline: float = DEADLINE) -> None:
        self.folder = folder
        self.deadline = deadline
        self.mark = uuid.uuid4().hex

    def write(self, **files: str) -> None:
        for name, source in files.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(source))

    def copy(self, folder: Path) -> None:
        shutil.copytree(folder, self.folder, dirs_exist_ok=True)

    def finished(self, ret: int, out: str) -> Run:
        """Return what another program than pytest has done."""
        return Run(ret, out)

    def environment(self, **own: str) -> dict[str, str]:
        """Return the environment of a process of a run; `own` overrides it."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(_NOT_PASSED_ON)},
            MARK: self.mark,
            # its own leases, so that it does not wait for other tests on this machine
            "PPRANK_LEASE_DIR": str(self.folder),
            **own,
        }

    def popen(self, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
        plugins = ["no:randomly", *([] if "cache" in kwargs else ["no:cacheprovider"])]
        kwargs.pop("cache", None)
        python = kwargs.pop("python", None) or sys.executable
        command = [python, "-m", "pytest", *(f"-p{name}" for name in plugins), *args]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(**kwargs.pop("env", {})),
            stdin=subprocess.DEVNULL,  # where there is a terminal, ranks stop on it
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **kwargs,
        )

    def run(self, *args: str, **kwargs: Any) -> Run:
        with self.popen("-v", *args, **kwargs) as process:
            try:
                out, _ = process.communicate(timeout=self.deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Run(process.returncode, out)

    def shell(self, command: str) -> Run:
        """Run a command as a user types it, in the folder of the runs."""
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.deadline,
            check=False,
        )
        return Run(done.returncode, done.stdout)

    @staticmethod
    def read_until(process: subprocess.Popen[str], text: str) -> str:
        """Return the first line of a run's output that contains `text`."""
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"never said {text!r}:\n{''.join(lines)}")

    def processes(self) -> dict[int, str]:
        """Return the live processes of our runs: pid to command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()[:300]
            except OSError:
                continue  # gone by now
        return found

    def wait_for(self, condition: Callable[[], T | None], what: str) -> T:
        """Wait until `condition()` is true, and return its value."""
        deadline = time.monotonic() + self.deadline
        while not (value := condition()):
            assert time.monotonic() < deadline, f"timed out waiting until {what}"
            time.sleep(0.05)
        return value


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture(scope="module")
def module_runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("run"))
