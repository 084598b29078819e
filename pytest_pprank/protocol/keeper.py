"""What a run says to the kept process (--pprank-keep) that forks its launcher."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class KeeperSpec:
    """What a keeper is told over its standard input, once: `listener` is a descriptor, `idle`
    seconds, `started` nanoseconds of the epoch; the rest see launch.keep_folder.KeeperNote.
    """

    folder: str
    listener: int
    idle: float
    started: int
    note: dict[str, Any]


@dataclass(frozen=True)
class LaunchRequest:
    """Asks for a launcher; `environment` are the variables that each run has its own value of."""

    spec: dict[str, Any]
    environment: dict[str, str]

    def pack(self) -> bytes:
        """Return the request as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"
