"""Failures that SGLang logs and otherwise ignores.

The first bug this plugin was written for (PR 26883) was such a warning: "Failed to profile prefill
latency", after which dynamic chunking was off for all users.
"""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.sglang.events.logs import is_swallowed, listen_to_logs
from pytest_pprank.sglang.events.types import LogRecord

_CURE = (
    "SGLang has caught this and goes on; a user sees it only as lost speed, memory or requests. If "
    "it is meant to happen here, allow it with a reason (--pprank-sanitize-allow), or mark the "
    'test with @pytest.mark.pprank(sanitize="-logs")'
)


class Logs(Sanitizer):
    """Listens to SGLang's loggers."""

    name: ClassVar[str] = "logs"

    def begin(self) -> None:
        self.watch.at_end(listen_to_logs(self._logged, self.watch.guard))

    def _logged(self, record: LogRecord) -> None:
        if not is_swallowed(record):
            return
        self.watch.report(
            f"SGLang logged at level {record.level}: {record.text.rstrip()}"
            + (f"\nwhile handling {record.error}" if record.error else ""),
            (record.site, *record.raised_at),
            _CURE,
        )
