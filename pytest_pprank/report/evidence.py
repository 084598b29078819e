"""Evidence for the cause of a rank's death: the end of its stderr, and the kernel's counters."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_pprank.report.stacks import trim_stacks

_DUMP = re.compile(r"^Fatal Python error: .*", re.MULTILINE | re.DOTALL)
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Evidence:
    """The last line of stderr, faulthandler's `dump`, and `out_of_memory` if that is certain."""

    last_line: str = ""
    dump: str = ""
    out_of_memory: str = ""

    def with_memory(self, text: str) -> Evidence:
        """Return a copy with the text of an OomKillCounter."""
        return replace(self, out_of_memory=text)


NO_EVIDENCE = Evidence()


def split_stderr(stderr: str) -> tuple[Evidence, str]:
    """Split the stderr of a dead rank into evidence and the rest."""
    found = _DUMP.search(stderr)
    dump = trim_stacks(found.group()) if found else ""
    rest = stderr[: found.start()] if found else stderr
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    return Evidence(last_line=lines[-1] if lines else "", dump=dump), rest


class OomKillCounter:
    """Counts the kernel's out-of-memory kills from its creation on.

    SIGKILL has many senders: a death is never attributed to memory unless this counter has
    increased. The counter is that of the whole machine, the only one that can be read without
    privileges (Linux 4.13 and later).
    """

    def __init__(self, vmstat: Path = _VMSTAT) -> None:
        self._vmstat = vmstat
        self._before = self._kills()

    def explain(self, how: str) -> str:
        """Return that the kernel has killed for memory, if it has; `how` is how the rank ended."""
        kills = self._kills()
        if "SIGKILL" not in how or kills is None or self._before is None or kills <= self._before:
            return ""
        count = kills - self._before
        return f"out of memory: meanwhile the kernel's OOM killer ended {count} process(es) here"

    def _kills(self) -> int | None:
        try:
            found = re.search(r"^oom_kill (\d+)$", self._vmstat.read_text(), re.MULTILINE)
        except OSError:
            return None
        return int(found.group(1)) if found else None
