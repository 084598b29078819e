"""The dump of NCCL's flight recorder: what torch knows of the operations it has queued."""

from __future__ import annotations

import os
from pathlib import Path


def dump_flight_recorder(path: Path) -> bool:
    """Write it to `path` as JSON, whole or not at all; False if that cannot be done."""
    try:
        from torch._C import _distributed_c10d as c10d

        dump = getattr(c10d, "_dump_nccl_trace_json", None)
        if dump is None:
            return False
        text = dump()
        beside = path.with_suffix(".new")
        beside.write_bytes(text if isinstance(text, bytes) else str(text).encode())
        os.replace(beside, path)
    except (ImportError, OSError, RuntimeError):
        return False
    return True
