"""System libraries that pip cannot install: those that Mooncake needs, for prefill/decode."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence

from pytest_pprank.sglang.platform import mooncake

_APT_S = 300.0
_OPTIONS = (
    "-q",
    "-y",
    "-o",
    "Acquire::Retries=1",
    "-o",
    "Acquire::http::Timeout=20",
    "-o",
    "Acquire::https::Timeout=20",
    "-o",
    "DPkg::Lock::Timeout=120",
)
_TAIL = 3
_PLAIN = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def complete_mooncake(
    say: Callable[[str], None], agreed: Callable[[str], bool], *, dry: bool
) -> str:
    """Install the libraries that Mooncake lacks, if this process may; return what is still wrong.

    This needs root, apt-get and consent (`agreed` is called with the command). Otherwise, or if
    apt-get fails, the answer is one line with the command to run. Installed packages are never
    upgraded.
    """
    reason = "it is not installed" if not mooncake.installed() else mooncake.why_not()
    if not reason:
        return ""
    wanted = mooncake.packages(mooncake.missing_libraries(reason)) if mooncake.installed() else ()
    apt = shutil.which("apt-get")
    if not wanted or apt is None or os.geteuid() != 0:
        return mooncake.advice(reason)
    install = [apt, "install", *_OPTIONS, "--no-install-recommends", "--no-upgrade", *wanted]
    if dry:
        print(" ".join(install), flush=True)
        return ""
    packages = _with_dependencies(install) or wanted
    say(f"Mooncake, for prefill/decode, needs packages of the system: {' '.join(packages)}")
    if not agreed(f"apt-get install {' '.join(packages)}"):
        return f"{mooncake.advice(reason)} (or, as root: setup --yes)"
    say("installing them with apt-get")
    failure = _apt(install)
    if failure:  # a fresh container has no package lists, an old one has outdated lists
        failure = _apt([apt, "update", *_OPTIONS]) or _apt(install)
    reason = mooncake.why_not()
    if not reason:
        return ""
    return f"{mooncake.advice(reason)}" + (f" (apt-get said: {failure})" if failure else "")


def _with_dependencies(install: Sequence[str]) -> tuple[str, ...]:
    """Return all packages that an ``apt-get install`` would install; empty if apt fails."""
    command = [install[0], "--simulate", *install[1:]]
    simulated = subprocess.run(command, capture_output=True, text=True, check=False, env=_PLAIN)
    return tuple(re.findall(r"^Inst (\S+)", simulated.stdout, re.MULTILINE))


def _apt(command: Sequence[str]) -> str:
    """Run apt-get; return the end of its output if it failed, else ""."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_PLAIN,
            timeout=_APT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing for {_APT_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return "; ".join(lines[-_TAIL:]) or f"exit code {done.returncode}"
