"""What the controller passes to the launcher before they have a channel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

LAUNCHER_RANK = -1
"""The launcher's `rank` in messages; ranks count from 0."""
PRELOAD_VARIABLE = "PPRANK_PRELOAD"
"""The environment variable with the names of what the fork server imports."""
PLAIN_PRELOAD = ("torch", "torch.distributed", "pytest", "pytest_pprank.host.preload")
_SGLANG_PRELOAD = "pytest_pprank.sglang.platform.preload:import_sglang:{device}"
IMPORTING = "importing"
"""The file, in the launcher's TMPDIR, with the name of the package being imported."""


def preload_entries(device: str, *, sglang: bool) -> tuple[str, ...]:
    """Return what the fork server of ranks on `device` imports; `sglang`: whether SGLang, too."""
    first = (_SGLANG_PRELOAD.format(device=device),) if sglang else ()
    return first + PLAIN_PRELOAD


@dataclass(frozen=True)
class LauncherSpec:
    """The first line of the launcher's standard input."""

    address: tuple[str, int]
    key: str
    run_dir: str
    fork: bool

    @classmethod
    def from_json(cls, text: str) -> LauncherSpec:
        """Parse what `to_json` returns."""
        fields: dict[str, Any] = json.loads(text)
        fields["address"] = tuple(fields["address"])
        return cls(**fields)

    def to_json(self) -> str:
        """Return the fields as one line of JSON."""
        return json.dumps(self.__dict__)
