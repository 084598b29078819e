"""The properties of a run that a kept launcher must share with it to serve it.

Imports may read any environment variable, so all variables count, except those that differ between
runs or terminals and that no library reads on import. A kept launcher takes the values of those
from the run. Other values are kept as hashes: some are secrets.
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
        "PPRANK_REGRESSIONS_FOLDER",
        "PPRANK_REVERTS_REACHED",
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
    """Return the variables whose values may differ between runs."""
    return {name: value for name, value in environment.items() if is_per_run(name)}


def is_per_run(name: str) -> bool:
    """Return whether the value of a variable may differ between runs."""
    return name in _PER_RUN or name.startswith(_PER_RUN_PREFIXES)


def kind(text: str) -> str:
    """Return a key for launchers of one purpose; launchers of several kinds may be kept."""
    return hashed(f"{sys.version} {text}")


def identity(environment: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Return the properties that must be equal, by heading and name, as JSON data."""
    return {
        "environment variable": {
            name: hashed(value) for name, value in environment.items() if not is_per_run(name)
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
    """Return the first property that differs, in words; empty if all are equal."""
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


def hashed(text: str) -> str:
    """Return a value of a variable as it is kept: in a form that does not tell secrets."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH_LETTERS]


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def _umask() -> str:
    with suppress(OSError):  # os.umask could only read it by setting it
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return line.split()[1]
    return ""
