"""A started Scheduler, its stores and its process groups listen on loopback only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_LISTEN, _LOOPBACK = "0A", "0100007F:"


def test_scheduler_listens_on_loopback_only(scheduler: Any) -> None:
    assert scheduler is not None
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    sockets = {os.readlink(link)[8:-1] for link in links if os.path.lexists(link)}
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [row[1] for row in rows if row[3] == _LISTEN and row[9] in sockets]
    assert listening
    assert [address for address in listening if not address.startswith(_LOOPBACK)] == []
