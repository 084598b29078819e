"""Messages from a run to the kept process (--pprank-keep), which forks the run's launcher."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class KeeperSpec:
    """The first line of a keeper's standard input.

    `listener` is a file descriptor, `idle` in seconds, `started` in nanoseconds since the epoch.
    For the rest see launch.keep_folder.KeeperNote.
    """

    folder: str
    listener: int
    idle: float
    started: int
    note: dict[str, Any]


@dataclass(frozen=True)
class LaunchRequest:
    """Asks for a launcher; `environment` has the variables whose values differ between runs."""

    spec: dict[str, Any]
    environment: dict[str, str]

    def pack(self) -> bytes:
        """Return the request as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"
