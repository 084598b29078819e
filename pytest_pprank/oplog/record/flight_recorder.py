"""NCCL's flight recorder: torch's record of the operations that a device executes by itself."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_RELAXED = 2  # cudaStreamCaptureModeRelaxed
_COALESCED = "nccl:coalesced"


@contextmanager
def beside_a_capture() -> Iterator[None]:
    """Allow queries of device events without breaking another thread's CUDA graph capture.

    Asking a Work for completion and dumping the flight recorder both query events. That invalidates
    a capture anywhere in the process unless the querying thread is in relaxed capture mode. Does
    nothing without the CUDA runtime.
    """
    runtime = _cuda_runtime()
    mode = ctypes.c_int(_RELAXED)
    if runtime is not None:
        runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        if runtime is not None:
            runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def dump_flight_recorder() -> bytes:
    """Return the dump as JSON; empty if this torch has no function for it."""
    from torch._C import _distributed_c10d as c10d

    dump = getattr(c10d, "_dump_nccl_trace_json", None)
    if dump is None:
        return b""
    with beside_a_capture():
        text = dump()
    return text if isinstance(text, bytes) else str(text).encode()


def save_dump(dump: bytes, path: Path) -> None:
    """Write the dump to `path` atomically; raises OSError."""
    beside = path.with_suffix(".new")
    beside.write_bytes(dump)
    os.replace(beside, path)


def still_running(dump: bytes) -> dict[str, list[bool]]:
    """Return for each group, by name, whether each of its operations still runs, in issue order.

    Coalesced operations have no events of their own: the record after them has one for all.
    """
    running: dict[str, list[bool]] = {}
    batch: dict[str, int] = {}
    entries: list[Mapping[str, Any]] = json.loads(dump).get("entries", [])
    for entry in entries:
        group = str(entry["process_group"][0])
        known = running.setdefault(group, [])
        runs = entry["state"] != "completed"
        if entry["profiling_name"] == _COALESCED:
            first = batch.get(group, 0)
            known[first:] = [runs] * (len(known) - first)
            batch[group] = len(known)
        else:
            # only p2p entries that are not completed may belong to a batch whose record follows
            if not (entry["is_p2p"] and runs):
                batch[group] = len(known) + 1
            known.append(runs)
    return running


def _cuda_runtime() -> ctypes.CDLL | None:
    """Return the CUDA runtime that this process has loaded; None if it has not."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libcudart" in line}
    return ctypes.CDLL(min(paths)) if paths else None
