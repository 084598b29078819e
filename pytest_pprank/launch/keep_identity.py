"""What of a run its launcher was started with: a kept one serves the next run if that is the same.

Imports may read any environment variable, so all count, except those that differ from run to run or
from terminal to terminal and that no library reads while it is imported. A kept launcher takes even
those over from the run. Values are kept as hashes: some are secrets.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PER_RUN = frozenset(
    {
        "_",
        "COLORTERM",
        "COLUMNS",
        "DBUS_SESSION_BUS_ADDRESS",
        "DISPLAY",
        "GPG_TTY",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LINES",
        "OLDPWD",
        "PPRANK_LEASE_DIR",
        "PPRANK_PRELOAD",
        "PS1",
        "PWD",
        "PYTEST_ADDOPTS",
        "PYTEST_CURRENT_TEST",
        "PYTEST_VERSION",
        "SHELL_SESSION_ID",
        "SHLVL",
        "STY",
        "TERM",
        "TMPDIR",
        "VIRTUAL_ENV_PROMPT",
        "WINDOWID",
        "XDG_SESSION_ID",
    }
)
_PER_RUN_PREFIXES = (
    "ALACRITTY_",
    "GNOME_TERMINAL_",
    "ITERM_",
    "KITTY_",
    "KONSOLE_",
    "PYTEST_XDIST_",
    "SSH_",
    "TERM_",
    "TMUX",
    "VSCODE_",
    "WEZTERM_",
    "ZELLIJ",
)
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_HASH_LETTERS = 16


def per_run(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that each run has its own value of."""
    return {name: value for name, value in environment.items() if is_per_run(name)}


def is_per_run(name: str) -> bool:
    """Whether each run may have its own value of a variable."""
    return name in _PER_RUN or name.startswith(_PER_RUN_PREFIXES)


def kind(text: str) -> str:
    """Return a name for launchers that differ in what they are for: several may be kept."""
    return _hash(f"{sys.version} {text}")


def identity(environment: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Return what must be the same, by heading and name; plain data for JSON."""
    return {
        "environment variable": {
            name: _hash(value) for name, value in environment.items() if not is_per_run(name)
        },
        "resource limit": {
            name: list(resource.getrlimit(getattr(resource, name)))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "namespace": {name: _link(f"/proc/self/ns/{name}") for name in _NAMESPACES},
        "property of the process": {
            "umask": _umask(),
            "cores": sorted(os.sched_getaffinity(0)),
            "user": [os.getuid(), os.geteuid(), os.getgid(), *sorted(os.getgroups())],
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        },
    }


def difference(
    kept: Mapping[str, Mapping[str, object]], now: Mapping[str, Mapping[str, object]]
) -> str:
    """Say what is not the same, the first thing alone; empty if all is."""
    for heading in sorted({*kept, *now}):
        before, after = kept.get(heading, {}), now.get(heading, {})
        for name in sorted({*before, *after}):
            if name not in after:
                return f"{heading} {name} is gone"
            if name not in before:
                return f"{heading} {name} is new"
            if before[name] != after[name]:
                return f"{heading} {name} has changed"
    return ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH_LETTERS]


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def _umask() -> str:
    with suppress(OSError):  # without setting it
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return line.split()[1]
    return ""
