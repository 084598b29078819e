"""What the controller tells the launcher before there is a channel between them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

LAUNCHER_RANK = -1
"""The launcher's number on the channel, where ranks count from 0."""
PRELOAD_VARIABLE = "PPRANK_PRELOAD"
"""The environment variable that names what the fork server imports."""
IMPORTING = "importing"
"""The file, in the launcher's TMPDIR, that says which package is being imported."""


@dataclass(frozen=True)
class LauncherSpec:
    """What the controller tells the launcher over its standard input, once."""

    address: tuple[str, int]
    key: str
    run_dir: str
    fork: bool

    @classmethod
    def from_json(cls, text: str) -> LauncherSpec:
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["address"] = tuple(fields["address"])
        return cls(**fields)

    def to_json(self) -> str:
        """Write the fields as one line."""
        return json.dumps(self.__dict__)
