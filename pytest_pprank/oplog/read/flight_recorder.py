"""Formats the dump of NCCL's flight recorder: the operations the GPUs still had to execute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SHOWN = 8


def read_dump(path: Path) -> str:
    """Return the last entries of a dump, one per line with its state; empty without a dump."""
    try:
        dump: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return ""  # no NCCL on this rank, or the rank could not write the dump
    entries: list[dict[str, Any]] = dump.get("entries", [])
    lines = [_line(entry) for entry in entries[-_SHOWN:]]
    left_out = len(entries) - len(lines)
    return "\n".join(([f"({left_out} earlier ones)"] if left_out else []) + lines)


def _line(entry: Mapping[str, Any]) -> str:
    number = entry.get("p2p_seq_id") if entry.get("is_p2p") else entry.get("collective_seq_id")
    group = " ".join(map(str, entry.get("process_group", ())))
    sizes = f"{entry.get('input_sizes')} {entry.get('input_dtypes')}"
    return (
        f"{entry.get('state', '?'):>10} {entry.get('profiling_name')} #{number} {sizes} in {group}"
    )
